"""The step of MicroAdam for many tensors of PyTorch, in one call."""

import math
from collections import namedtuple

import numba
import numpy as np
import torch

from keras_efficient.kernels.cpu.group import from_bits
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.micro_adam import ENTRIES_A_PART
from keras_efficient.kernels.cpu.micro_adam_blocks import Arrays
from keras_efficient.kernels.cpu.micro_adam_blocks import make_spaces
from keras_efficient.kernels.cpu.micro_adam_blocks import step_blocks
from keras_efficient.kernels.cpu.micro_adam_numbers import Layout
from keras_efficient.kernels.cpu.micro_adam_numbers import gather
from keras_efficient.kernels.cpu.micro_adam_numbers import noise_key
from keras_efficient.kernels.cpu.micro_adam_numbers import write_row
from keras_efficient.kernels.cpu.table import add_parts
from keras_efficient.kernels.cpu.table import array_at
from keras_efficient.kernels.cpu.table import correction_at
from keras_efficient.kernels.cpu.table import count_threads
from keras_efficient.kernels.cpu.table import take_part
from keras_efficient.kernels.cpu.weights import Rounding
from keras_efficient.kernels.cpu.weights import weight_noise
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi
from keras_efficient.kernels.ffi.tensor_table import TensorTable
from keras_efficient.kernels.ffi.tensor_table import weight_columns

# What all tensors share. Likes: empty arrays, which tell the dtypes.
Likes = namedtuple("Likes", ("parameter", "indices", "values", "gradient"))
Sizes = namedtuple("Sizes", ("window", "k", "block_size", "bucket_size"))


# Dynamo would trace into the table.
@torch.compiler.disable
def do_steps(rows, arguments):
    """Do the steps of rows of the same dtypes, in place.

    See `cpu.micro_adam.do_steps`.
    """
    tensors = TensorTable([row.tensors for row in rows])
    sizes = np.array([row.parameter.numel() for row in rows])
    seeds = [row.seed for row in rows]
    addresses, decays = weight_columns(tensors.addresses, rows)
    columns = [addresses, sizes, seeds, decays, [row.first for row in rows]]
    # There may be a correction among the first ones.
    parameter, *_ = tensors.likes
    *_, indices, values, _, _, _, _, _, gradient = tensors.likes
    momentum_bias, velocity_bias = arguments.biases
    _micro_adam_many(
        np.zeros(1, "int64"),
        count_threads(sizes, ENTRIES_A_PART),
        add_parts(columns, sizes, ENTRIES_A_PART),
        parameter,
        indices,
        values,
        gradient,
        arguments.window,
        arguments.k,
        arguments.block_size,
        arguments.bucket_size,
        arguments.learning_rate,
        momentum_bias,
        velocity_bias,
        arguments.step,
        arguments.constants,
        arguments.weight_rounding == "stochastic",
        arguments.is_stochastic,
        arguments.is_window,
    )
    tensors.mark_written()
    return [row.tensors[:-1] for row in rows]


@numba_ffi(in_place="taken", parallel=True)
def _micro_adam_many(
    taken,
    threads,
    table,
    parameter,
    indices,
    values,
    gradient,
    window,
    k,
    block_size,
    bucket_size,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    constants,
    is_random,
    is_stochastic,
    is_window,
):
    """Take parts until all are done.

    `table` has, for each tensor, the addresses of what `micro_adam` calls
    parameter, correction, indices, values, written, codes, low, high, velocity
    and gradient; the number of its entries; its seed; its decay; the place of
    its first entry; and what `add_parts` adds. `parameter`, `indices`, `values`
    and `gradient` are empty and tell dtypes.
    """
    sizes = window[0], k[0], block_size[0], bucket_size[0]
    likes = parameter, indices, values, gradient
    scalars = learning_rate[0], momentum_bias[0], velocity_bias[0]
    choices = step[0], is_random[0], is_stochastic[0], is_window[0]
    windows = _write_rows(table, window[0], step[0], constants)
    if threads[0] <= 1:
        _take_parts(
            taken, table, likes, sizes, windows, scalars, constants, choices
        )
        return
    for _ in numba.prange(threads[0]):
        _take_parts(
            taken, table, likes, sizes, windows, scalars, constants, choices
        )


_micro_adam_many.numba_kernel.counts_threads = True


@jit
def _write_rows(table, window, step, constants):
    """Do `write_row` for each tensor."""
    count = table.shape[0]
    rows = np.empty(count, np.int64)
    weights = np.empty((count, 2, window), np.float32)
    sums = np.empty((count, 2), np.float32)
    like = np.empty(0, np.int32)
    for i in range(count):
        written = array_at(table[i, 4], window, like)
        rows[i], weights[i], sums[i] = write_row(written, step, constants)
    return rows, weights, sums


# Parallel loops of Numba take no tuples that have names.
@jit
def _take_parts(
    taken, table, likes, sizes, windows, scalars, constants, choices
):
    likes, sizes = Likes(*likes), Sizes(*sizes)
    rows, weights, sums = windows
    rate, momentum_bias, velocity_bias = scalars
    step, is_random, is_stochastic, is_window = choices
    block_size, half = np.int64(sizes.block_size), sizes.bucket_size // 2
    spaces = make_spaces(block_size)
    tensor, part, parts = take_part(taken, table, 0)
    while tensor < table.shape[0]:
        arrays = _arrays_at(table[tensor], likes, sizes)
        seed, decay = table[tensor, 11], table[tensor, 12]
        entry = np.uint32(table[tensor, 13])
        noise = noise_key(step, seed, is_stochastic)
        if is_stochastic:
            noise = np.int64(np.uint32(np.uint32(noise) + entry))
        layout = Layout(block_size, half, rows[tensor], noise)
        numbers = gather(
            momentum_bias,
            velocity_bias,
            constants,
            sums[tensor],
            is_window,
            False,
        )
        rounding = Rounding(
            rate=rate,
            decay=from_bits(np.int32(decay)),
            is_random=is_random,
            noise=np.uint32(weight_noise(step, seed) + entry),
            fused=False,
        )
        blocks = arrays.velocity.size
        first, last = part * blocks // parts, (part + 1) * blocks // parts
        step_blocks(
            first,
            last,
            arrays,
            weights[tensor],
            layout,
            numbers,
            spaces,
            rounding,
        )
        tensor, part, parts = take_part(taken, table, tensor)


@jit
def _arrays_at(row, likes, sizes):
    """Return the `Arrays` of a row of the table."""
    size = row[10]
    blocks = math.ceil(size / sizes.block_size)
    buckets = math.ceil(size / sizes.bucket_size)
    entries = sizes.window, blocks, sizes.k
    uint8, bfloat16 = np.empty(0, np.uint8), np.empty(0, np.uint16)
    float32 = np.empty(0, np.float32)
    return Arrays(
        parameter=array_at(row[0], size, likes.parameter),
        correction=correction_at(row[1], size, np.empty(0, np.int8)),
        indices=array_at(row[2], entries, likes.indices),
        values=array_at(row[3], entries, likes.values),
        codes=array_at(row[5], buckets * (sizes.bucket_size // 2), uint8),
        low=array_at(row[6], buckets, bfloat16),
        high=array_at(row[7], buckets, bfloat16),
        velocity=array_at(row[8], blocks, float32),
        gradient=array_at(row[9], size, likes.gradient),
        places=np.empty(0, np.int32),
    )
