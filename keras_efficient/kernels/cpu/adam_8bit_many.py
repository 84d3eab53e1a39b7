"""The step of 8-bit Adam for many tensors of PyTorch, in one call."""

import numba
import numpy as np
import torch

from keras_efficient.kernels.cpu.adam_8bit import ENTRIES_A_PART
from keras_efficient.kernels.cpu.adam_8bit_tiles import Arrays
from keras_efficient.kernels.cpu.adam_8bit_tiles import divide
from keras_efficient.kernels.cpu.adam_8bit_tiles import gather
from keras_efficient.kernels.cpu.adam_8bit_tiles import run
from keras_efficient.kernels.cpu.group import from_bits
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.jit import jit
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


# Dynamo would trace into the table.
@torch.compiler.disable
def do_steps(rows, arguments):
    """Do the steps of rows of the same dtypes, in place.

    See `cpu.adam_8bit.do_steps`.
    """
    tensors = TensorTable([row.tensors for row in rows])
    sizes = [arguments.sizes(tuple(row.parameter.shape)) for row in rows]
    entries = np.array([size.rows * size.columns for size in sizes])
    numbers = [[*size, row.seed] for size, row in zip(sizes, rows)]
    # Of the groups of 32 and of the entries of a shard, in the whole tensor.
    firsts = [
        [row.first * size.groups // max(1, size.rows * size.columns), row.first]
        for size, row in zip(sizes, rows)
    ]
    addresses, decays = weight_columns(tensors.addresses, rows)
    parameter, *_, gradient = tensors.likes
    momentum_bias, velocity_bias = arguments.biases
    _adam_8bit_many(
        np.zeros(1, "int64"),
        count_threads(entries, ENTRIES_A_PART),
        add_parts(
            [addresses, numbers, decays, firsts], entries, ENTRIES_A_PART
        ),
        parameter,
        gradient,
        arguments.learning_rate,
        momentum_bias,
        velocity_bias,
        arguments.step,
        arguments.constants,
        arguments.weight_rounding == "stochastic",
    )
    tensors.mark_written()
    return [row.tensors[:-1] for row in rows]


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
    constants,
    is_random,
):
    """Take parts until all are done.

    `table` has, for each tensor, the addresses of what `adam_8bit` calls
    parameter, correction, momentum_codes, momentum_scale, velocity_codes,
    velocity_scale and gradient; rows, columns, groups, seed and the decay; the
    places of the first group and entry; and what `add_parts` adds.
    `parameter` and `gradient` are empty and tell the dtypes.
    """
    scalars = learning_rate[0], momentum_bias[0], velocity_bias[0]
    choices = np.uint32(step[0]), is_random[0]
    likes = parameter, gradient
    if threads[0] <= 1:
        _take_parts(taken, table, likes, scalars, constants, choices)
        return
    for _ in numba.prange(threads[0]):
        _take_parts(taken, table, likes, scalars, constants, choices)


_adam_8bit_many.numba_kernel.counts_threads = True


@jit
def _take_parts(taken, table, likes, scalars, constants, choices):
    parameter, gradient = likes
    rate, momentum_bias, velocity_bias = scalars
    step, is_random = choices
    numbers = gather(momentum_bias, velocity_bias, constants, False)
    int8, uint8 = np.empty(0, np.int8), np.empty(0, np.uint8)
    float16, places = np.empty(0, np.uint16), np.empty(0, np.int32)
    tensor, part, parts = take_part(taken, table, 0)
    while tensor < table.shape[0]:
        row = table[tensor]
        rows, columns, groups, seed = row[7], row[8], row[9], row[10]
        size = rows * columns
        arrays = Arrays(
            parameter=array_at(row[0], size, parameter),
            correction=correction_at(row[1], size, int8),
            m_codes=array_at(row[2], size, int8),
            m_scale=array_at(row[3], groups, float16),
            v_codes=array_at(row[4], size, uint8),
            v_scale=array_at(row[5], groups, float16),
            gradient=array_at(row[6], size, gradient),
            places=places,
        )
        tiles, a_row, columns = divide(rows, columns, groups)
        noise = mix(step + mix(np.uint32(seed))) + np.uint32(row[12])
        rounding = Rounding(
            rate=rate,
            decay=from_bits(np.int32(row[11])),
            is_random=is_random,
            noise=np.uint32(weight_noise(step, seed) + np.uint32(row[13])),
            fused=False,
        )
        first, last = part * tiles // parts, (part + 1) * tiles // parts
        run(first, last, a_row, columns, arrays, numbers, noise, rounding)
        tensor, part, parts = take_part(taken, table, tensor)
