"""The step of `keras_efficient.ops.micro_adam_step` in one pass, on CUDA.

A program does some blocks: first every entry as if it were not in the window,
then the few that are.
"""

import math

import numpy as np
import torch
import triton
import triton.language as tl

from keras_efficient.kernels.ffi.tensor_table import TensorTable
from keras_efficient.kernels.ffi.tensor_table import weight_columns
from keras_efficient.kernels.gpu import math as tm
from keras_efficient.kernels.gpu.math import finite_gradient
from keras_efficient.kernels.gpu.quantize_4bit import decode
from keras_efficient.kernels.gpu.quantize_4bit import decode_at
from keras_efficient.kernels.gpu.quantize_4bit import encode
from keras_efficient.kernels.gpu.table import alignment_of
from keras_efficient.kernels.gpu.table import dtype_of
from keras_efficient.kernels.gpu.table import place
from keras_efficient.kernels.gpu.table import pointer
from keras_efficient.kernels.gpu.weights import load_weight
from keras_efficient.kernels.gpu.weights import rounding_of
from keras_efficient.kernels.gpu.weights import store_weight
from keras_efficient.kernels.gpu.window import sum_window
from keras_efficient.kernels.gpu.window import update_window
from keras_efficient.kernels.gpu.window import window_kernel

ENTRIES = 1024  # of a program
WARPS = 4
LARGEST_BLOCK = 1024
LARGEST_WINDOW = 64


def serves(arguments):
    """Return whether the kernel is written for `MicroAdamArguments`."""
    block_size, bucket_size = arguments.block_size, arguments.bucket_size
    return (
        arguments.window * arguments.k <= LARGEST_WINDOW
        and block_size <= LARGEST_BLOCK
        and block_size % bucket_size == 0
        and all(math.log2(x).is_integer() for x in (block_size, bucket_size))
    )


# Dynamo would trace into the table.
@torch.compiler.disable
def do_steps(rows, arguments):
    """Do the steps of rows of the same dtypes, in place.

    Args:
        rows: List of `keras_efficient.ops.dispatch.Row` on one device.
        arguments: `MicroAdamArguments`.

    Returns:
        List with the parameter, its correction if there is one, and the state
        of each row, in one tuple; or `None` where there is no kernel for these
        sizes.
    """
    if not serves(arguments):
        return None
    tensors = TensorTable([row.tensors for row in rows])
    like = tensors.likes[0]
    sizes = np.array([row.parameter.numel() for row in rows])
    blocks = -(-sizes // arguments.block_size)
    buckets = -(-sizes // arguments.bucket_size)
    seeds = [row.seed for row in rows]
    at_once = max(1, ENTRIES // arguments.block_size)
    addresses, decays = weight_columns(tensors.addresses, rows)
    table, rows_of_programs = place(
        np.column_stack([addresses, sizes, seeds, blocks, buckets, decays]),
        -(-blocks // at_once),
        like,
    )
    rounding = rounding_of(rows[0], arguments)
    with tm.device_of(like):
        _launch(table, rows_of_programs, at_once, tensors, arguments, rounding)
    tensors.mark_written()
    return [row.tensors[:-1] for row in rows]


def _launch(table, rows_of_programs, at_once, tensors, arguments, rounding):
    # There may be a correction among the first ones.
    parameter, *_ = tensors.likes
    *_, indices, values, _, _, _, _, _, gradient = tensors.likes
    window, k = arguments.window, arguments.k
    b_1, c_1, b_2, c_2, epsilon, alpha, rest = map(float, arguments.constants)
    rate, momentum_bias, velocity_bias, step = tm.scalars(arguments, parameter)
    size = triton.next_power_of_2(window)
    weights = torch.empty(len(table), 2 * size + 1, device=parameter.device)
    window_kernel[(len(table),)](
        table,
        weights,
        momentum_bias,
        velocity_bias,
        step,
        _log2(b_1),
        c_1,
        _log2(b_2),
        c_2,
        WINDOW=window,
        ROWS=size,
        IS_WINDOW=arguments.is_window,
        COLUMNS=table.shape[1],
        num_warps=1,
    )
    micro_adam_kernel[(len(rows_of_programs),)](
        table,
        rows_of_programs,
        weights,
        rate,
        velocity_bias,
        step,
        b_2,
        c_2,
        epsilon,
        alpha,
        rest,
        WINDOW=window,
        K=k,
        WINDOW_SIZE=triton.next_power_of_2(max(1, window * k)),
        ROWS=size,
        BLOCK=arguments.block_size,
        BUCKET=arguments.bucket_size,
        BLOCKS=at_once,
        IS_STOCHASTIC=arguments.is_stochastic,
        IS_WINDOW=arguments.is_window,
        COLUMNS=table.shape[1],
        PARAMETER=dtype_of(parameter),
        INDICES=dtype_of(indices),
        VALUES=dtype_of(values),
        GRADIENT=dtype_of(gradient),
        ROUNDING=rounding,
        ALIGNMENT=alignment_of(tensors.addresses),
        num_warps=WARPS,
        **tm.EXACT,
    )


def _log2(beta):
    # Finite, so that at age 0 it leaves 0, and the weight is 1.
    return math.log2(beta) if beta else -1e4


@triton.jit
def micro_adam_kernel(
    table,
    rows_of_programs,
    weights,
    learning_rate,
    velocity_bias,
    step,
    b_2,
    c_2,
    epsilon,
    alpha,
    not_alpha,
    WINDOW: tl.constexpr,
    K: tl.constexpr,
    WINDOW_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    IS_WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARAMETER: tl.constexpr,
    INDICES: tl.constexpr,
    VALUES: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROUNDING: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    program = tl.program_id(0)
    number = tl.load(rows_of_programs + program)
    tensor = table + number * COLUMNS
    parameter = pointer(tensor, 0, PARAMETER, ALIGNMENT)
    correction = pointer(tensor, 1, tl.int8, ALIGNMENT)
    indices = pointer(tensor, 2, INDICES, ALIGNMENT)
    values = pointer(tensor, 3, VALUES, ALIGNMENT)
    codes = pointer(tensor, 5, tl.uint8, ALIGNMENT)
    low = pointer(tensor, 6, tl.bfloat16, ALIGNMENT)
    high = pointer(tensor, 7, tl.bfloat16, ALIGNMENT)
    velocity = pointer(tensor, 8, tl.float32, ALIGNMENT)
    gradient = pointer(tensor, 9, GRADIENT, ALIGNMENT)
    size = tl.load(tensor + 10)
    seed = tl.load(tensor + 11).to(tl.int32)
    blocks = tl.load(tensor + 12).to(tl.int32)
    buckets = tl.load(tensor + 13).to(tl.int32)
    first = (program - tl.load(tensor + COLUMNS - 1)).to(tl.int32) * BLOCKS
    weights += number * (2 * ROWS + 1)

    t = tl.load(step)
    if first == 0:
        oldest = tl.load(weights + 2 * ROWS).to(tl.int32)
        tl.store(pointer(tensor, 4, tl.int32, 4) + oldest, t)
    block = first + tl.arange(0, BLOCKS)[:, None]
    is_block = block < blocks
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = place < size
    g = finite_gradient(tl.load(gradient + place, mask, 0.0))
    p = load_weight(parameter, correction, place, mask, ROUNDING)

    count = tl.minimum(size - block.to(tl.int64) * BLOCK, BLOCK)
    weight = c_2 / tl.maximum(count, 1).to(tl.float32)
    v = tl.load(velocity + block, is_block, 0.0)
    v = b_2 * v + tl.sum(g * g * weight, axis=1)[:, None]
    tl.store(velocity + block, v, is_block)
    v = v / tl.load(velocity_bias)

    bucket = first * (BLOCK // BUCKET)
    a = decode(codes, low, high, bucket, buckets, BLOCKS, BLOCK, BUCKET)
    a = g + tl.where(mask, a, 0.0)

    if K > 0:
        exists, index, value, w_1, w_2, taken, rest = update_window(
            a,
            indices,
            values,
            weights,
            block,
            blocks,
            WINDOW,
            K,
            WINDOW_SIZE,
            ROWS,
            BLOCK,
        )
        # What these entries were, before other threads write theirs
        at = block.to(tl.int64) * BLOCK + index
        is_entry = exists & (at < size)
        p_at = load_weight(parameter, correction, at, is_entry, ROUNDING)
        rest_at = finite_gradient(tl.load(gradient + at, is_entry, 0.0))
        rest_at += decode_at(codes, low, high, at, is_entry, BUCKET)
        rest_at -= taken
    else:
        rest = a
    tl.debug_barrier()

    x = tl.where(mask, not_alpha * rest, 0.0)
    encode(
        x,
        codes,
        low,
        high,
        bucket,
        buckets,
        t,
        seed,
        BLOCKS,
        BLOCK,
        BUCKET,
        IS_STOCHASTIC,
    )

    rate = tl.load(learning_rate)
    of_rest = alpha / (tl.sqrt_rn(v) + epsilon)
    store_weight(
        parameter,
        correction,
        place,
        mask,
        p,
        of_rest * rest,
        rate,
        tensor + 14,
        t,
        seed,
        ROUNDING,
    )
    if K > 0:
        z_1, z_2 = sum_window(index, value, w_1, w_2, v, IS_WINDOW)
        update = of_rest * rest_at + z_1 / (tl.sqrt_rn(z_2) + epsilon)
        tl.debug_barrier()
        store_weight(
            parameter,
            correction,
            at,
            is_entry,
            p_at,
            update,
            rate,
            tensor + 14,
            t,
            seed,
            ROUNDING,
        )
