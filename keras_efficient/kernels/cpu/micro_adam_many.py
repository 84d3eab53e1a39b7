"""The step of MicroAdam for many parameters, in one call."""

import math

import numba
import numpy as np

from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.micro_adam import ENTRIES_A_PART
from keras_efficient.kernels.cpu.micro_adam import gather
from keras_efficient.kernels.cpu.micro_adam import noise_key
from keras_efficient.kernels.cpu.micro_adam import write_row
from keras_efficient.kernels.cpu.micro_adam_blocks import make_spaces
from keras_efficient.kernels.cpu.micro_adam_blocks import step_blocks
from keras_efficient.kernels.cpu.table import add_parts
from keras_efficient.kernels.cpu.table import array_at
from keras_efficient.kernels.cpu.table import count_threads
from keras_efficient.kernels.cpu.table import take_part
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi


def micro_adam_many(layout, table, likes, *numbers):
    """Update parameters and their state, in place.

    Args:
        layout: How many rows a window has, how many entries a row of it, a
            block and a bucket.
        table: For each parameter, the addresses of what `micro_adam` calls
            parameter, indices, values, written, codes, low, high, velocity
            and gradient, all of them contiguous; the number of its entries,
            and the seed.
        likes: Empty tensors with the dtypes of these nine.
        *numbers: The learning rate, momentum_bias, velocity_bias, step,
            options, is_stochastic and is_window of `micro_adam`.
    """
    sizes = np.array(table, "int64")[:, 9]
    table = add_parts(table, sizes, ENTRIES_A_PART)
    threads = count_threads(sizes, ENTRIES_A_PART)
    taken, layout = np.zeros(1, "int64"), np.array(layout, "int64")
    likes = likes[0], likes[1], likes[2], likes[-1]
    _micro_adam_many(taken, threads, table, *likes, layout, *numbers)


@numba_ffi(in_place="taken", parallel=True)
def _micro_adam_many(
    taken,
    threads,
    table,
    parameter,
    indices,
    values,
    gradient,
    layout,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    options,
    is_stochastic,
    is_window,
):
    windows = _write_rows(table, layout, step[0], options)
    likes = parameter, gradient, indices, values
    scalars = learning_rate[0], momentum_bias[0], velocity_bias[0]
    choices = step[0], is_stochastic[0], is_window[0]
    if threads[0] <= 1:
        _take_parts(
            *(taken, table, likes, layout, windows, scalars, options, choices)
        )
        return
    for _ in numba.prange(threads[0]):
        _take_parts(
            *(taken, table, likes, layout, windows, scalars, options, choices)
        )


@jit
def _write_rows(table, layout, step, options):
    """Do `write_row` for each tensor."""
    count, window = table.shape[0], layout[0]
    rows = np.empty(count, np.int64)
    weights = np.empty((count, 2, window), np.float32)
    sums = np.empty((count, 2), np.float32)
    like = np.empty(0, np.int32)
    for i in range(count):
        written = array_at(table[i, 3], window, like)
        rows[i], weights[i], sums[i] = write_row(written, step, options)
    return rows, weights, sums


@jit
def _take_parts(
    taken, table, likes, layout, windows, scalars, options, choices
):
    window, k, block_size, bucket_size = layout
    step, is_stochastic, is_window = choices
    parameter, gradient, indices, values = likes
    byte, half_float = np.empty(0, np.uint8), np.empty(0, np.uint16)
    number = np.empty(0, np.float32)
    spaces = make_spaces(block_size)
    tensor, part, parts = take_part(taken, table, 0)
    while tensor < table.shape[0]:
        row = table[tensor]
        size = row[9]
        blocks = math.ceil(size / block_size)
        buckets = math.ceil(size / bucket_size)
        entries = window, blocks, k
        arrays = (
            array_at(row[0], size, parameter),
            array_at(row[8], size, gradient),
            array_at(row[1], entries, indices),
            array_at(row[2], entries, values),
            array_at(row[4], buckets * (bucket_size // 2), byte),
            array_at(row[5], buckets, half_float),
            array_at(row[6], buckets, half_float),
            array_at(row[7], blocks, number),
        )
        key = noise_key(step, row[10], is_stochastic)
        place = block_size, bucket_size // 2, windows[0][tensor], key
        numbers = gather(
            *(*scalars, options, windows[2][tensor], is_window, False),
        )
        first, last = part * blocks // parts, (part + 1) * blocks // parts
        step_blocks(
            *(first, last, arrays, windows[1][tensor], options),
            *(place, numbers, spaces),
        )
        tensor, part, parts = take_part(taken, table, tensor)
