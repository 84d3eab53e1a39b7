"""The step of 8-bit Adam for many parameters, in one call."""

import numba
import numpy as np

from keras_efficient.kernels.cpu.adam_8bit import ENTRIES_A_PART
from keras_efficient.kernels.cpu.adam_8bit import divide
from keras_efficient.kernels.cpu.adam_8bit import gather
from keras_efficient.kernels.cpu.adam_8bit import run
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.table import add_parts
from keras_efficient.kernels.cpu.table import array_at
from keras_efficient.kernels.cpu.table import count_threads
from keras_efficient.kernels.cpu.table import take_part
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi


def adam_8bit_many(table, likes, *numbers):
    """Update parameters and their state, in place.

    Args:
        table: For each parameter, the addresses of what `adam_8bit` calls
            parameter, momentum_codes, momentum_scale, velocity_codes,
            velocity_scale and gradient, all of them contiguous; the rows and
            the columns of the parameter, the number of its groups, and the
            seed.
        likes: Empty tensors with the dtypes of these six.
        *numbers: The learning rate, momentum_bias, velocity_bias, step and
            options of `adam_8bit`.
    """
    rows, columns = np.array(table, "int64")[:, 6:8].T
    sizes = rows * columns
    table = add_parts(table, sizes, ENTRIES_A_PART)
    threads = count_threads(sizes, ENTRIES_A_PART)
    taken = np.zeros(1, "int64")
    _adam_8bit_many(taken, threads, table, likes[0], likes[-1], *numbers)


@numba_ffi(in_place="taken", parallel=True)
def _adam_8bit_many(
    taken,
    threads,
    table,
    parameter,
    gradient,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    options,
):
    numbers = gather(
        *(learning_rate[0], momentum_bias[0], velocity_bias[0]),
        *(options, False),
    )
    key = np.uint32(step[0])
    if threads[0] <= 1:
        _take_parts(taken, table, parameter, gradient, numbers, key)
        return
    for _ in numba.prange(threads[0]):
        _take_parts(taken, table, parameter, gradient, numbers, key)


@jit
def _take_parts(taken, table, parameter, gradient, numbers, step):
    codes = np.empty(0, np.int8), np.empty(0, np.uint8)
    scale = np.empty(0, np.uint16)
    tensor, part, parts = take_part(taken, table, 0)
    while tensor < table.shape[0]:
        row = table[tensor]
        rows, columns, groups = row[6], row[7], row[8]
        size = rows * columns
        arrays = (
            array_at(row[0], size, parameter),
            array_at(row[1], size, codes[0]),
            array_at(row[2], groups, scale),
            array_at(row[3], size, codes[1]),
            array_at(row[4], groups, scale),
            array_at(row[5], size, gradient),
        )
        tiles, a_row, columns = divide(rows, columns, groups)
        noise = mix(step + mix(np.uint32(row[9])))
        first, last = part * tiles // parts, (part + 1) * tiles // parts
        run(first, last, a_row, columns, arrays, numbers, noise)
        tensor, part, parts = take_part(taken, table, tensor)
