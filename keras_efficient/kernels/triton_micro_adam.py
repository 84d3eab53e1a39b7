"""The step of `keras_efficient.ops.micro_adam_step` in one pass, on CUDA.

A program does some blocks: first every entry as if it were not in the window,
then the few that are.
"""

import math

import torch
import triton
import triton.language as tl

from keras_efficient.kernels import triton_math as tm
from keras_efficient.kernels.triton_math import finite_gradient
from keras_efficient.kernels.triton_math import subtract
from keras_efficient.kernels.triton_quantize_4bit import decode
from keras_efficient.kernels.triton_quantize_4bit import decode_at
from keras_efficient.kernels.triton_quantize_4bit import encode
from keras_efficient.kernels.triton_window import sum_window
from keras_efficient.kernels.triton_window import update_window
from keras_efficient.kernels.triton_window import window_kernel

ENTRIES = 1024  # of a program
WARPS = 4
LARGEST_BLOCK = 1024
LARGEST_WINDOW = 64


def serves(indices, codes, block_size):
    """Return whether the kernel is written for a state of these shapes."""
    window, _, k = indices.shape
    bucket_size = 2 * codes.shape[1]
    return (
        window * k <= LARGEST_WINDOW
        and block_size <= LARGEST_BLOCK
        and block_size % bucket_size == 0
        and all(math.log2(x).is_integer() for x in (block_size, bucket_size))
    )


def micro_adam(
    parameter,
    indices,
    values,
    written,
    codes,
    low,
    high,
    velocity,
    gradient,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    options,
    block_size,
    seed,
    is_stochastic,
    is_window,
    fused=False,
):
    """Update a parameter and its state, in place.

    Args:
        parameter: Contiguous tensor, not empty, float32 or bfloat16.
        indices, values, written, codes, low, high, velocity: As in
            `MicroAdamState`, contiguous.
        gradient: Tensor of as many entries as the parameter.
        learning_rate, momentum_bias, velocity_bias, step: Floats or scalar
            tensors; biases are 1 - beta_1^step and 1 - beta_2^step.
        options: The seven numbers beta_1, 1 - beta_1, beta_2, 1 - beta_2,
            epsilon, alpha and 1 - alpha, on the host.
        block_size: Integer; see `serves`.
        seed: Integer for the noise.
        is_stochastic: Whether rounding is stochastic.
        is_window: Whether the bias correction is that of the window.
        fused: What kernels for XLA need to know; PyTorch is never fused.
    """
    window, blocks, k = indices.shape
    numbers = [
        tm.scalar(x, dtype, parameter)
        for x, dtype in (
            (learning_rate, torch.float32),
            (momentum_bias, torch.float32),
            (velocity_bias, torch.float32),
            (step, torch.int32),
        )
    ]
    b_1, c_1, b_2, c_2, epsilon, alpha, rest = map(float, options)
    at_once = max(1, ENTRIES // block_size)
    rows = triton.next_power_of_2(window)
    weights = torch.empty(2 * rows + 1, device=parameter.device)
    rate, biases, step = numbers[0], numbers[1:3], numbers[3]
    with tm.device_of(parameter):
        window_kernel[(1,)](
            *(written, weights, *biases, step),
            *(_log2(b_1), c_1, _log2(b_2), c_2),
            WINDOW=window,
            ROWS=rows,
            IS_WINDOW=bool(is_window),
            num_warps=1,
        )
        micro_adam_kernel[(triton.cdiv(blocks, at_once),)](
            *(parameter, indices, values, weights, codes, low, high, velocity),
            *(gradient.contiguous(), rate, biases[1], step),
            *(b_2, c_2, epsilon, alpha, rest),
            int(seed),
            parameter.numel(),
            blocks,
            codes.shape[0],
            WINDOW=window,
            K=k,
            WINDOW_SIZE=triton.next_power_of_2(window * k),
            ROWS=rows,
            BLOCK=block_size,
            BUCKET=2 * codes.shape[1],
            BLOCKS=at_once,
            IS_STOCHASTIC=bool(is_stochastic),
            IS_WINDOW=bool(is_window),
            num_warps=WARPS,
            **tm.EXACT,
        )


def _log2(beta):
    # Finite, so that at age 0 it leaves 0, and the weight is 1.
    return math.log2(beta) if beta else -1e4


@triton.jit(do_not_specialize=["seed", "size", "blocks", "buckets"])
def micro_adam_kernel(
    parameter,
    indices,
    values,
    weights,
    codes,
    low,
    high,
    velocity,
    gradient,
    learning_rate,
    velocity_bias,
    step,
    b_2,
    c_2,
    epsilon,
    alpha,
    not_alpha,
    seed,
    size,
    blocks,
    buckets,
    WINDOW: tl.constexpr,
    K: tl.constexpr,
    WINDOW_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    IS_WINDOW: tl.constexpr,
):
    t = tl.load(step)
    first = tl.program_id(0) * BLOCKS
    block = first + tl.arange(0, BLOCKS)[:, None]
    is_block = block < blocks
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = place < size
    g = finite_gradient(tl.load(gradient + place, mask, 0.0))
    p = tl.load(parameter + place, mask, 0.0).to(tl.float32)

    count = tl.minimum(size - block.to(tl.int64) * BLOCK, BLOCK)
    weight = c_2 / tl.maximum(count, 1).to(tl.float32)
    v = tl.load(velocity + block, is_block, 0.0)
    v = b_2 * v + tl.sum(g * g * weight, axis=1)[:, None]
    tl.store(velocity + block, v, is_block)
    v = v / tl.load(velocity_bias)

    bucket = first * (BLOCK // BUCKET)
    a = decode(codes, low, high, bucket, buckets, BLOCKS, BLOCK, BUCKET)
    a = g + tl.where(mask, a, 0.0)

    exists, index, value, w_1, w_2, taken, rest = update_window(
        *(a, indices, values, weights, block, blocks),
        *(WINDOW, K, WINDOW_SIZE, ROWS, BLOCK),
    )
    # What these entries were, before other threads write theirs
    at = block.to(tl.int64) * BLOCK + index
    is_entry = exists & (at < size)
    p_at = tl.load(parameter + at, is_entry, 0.0).to(tl.float32)
    rest_at = finite_gradient(tl.load(gradient + at, is_entry, 0.0))
    rest_at += decode_at(codes, low, high, at, is_entry, BUCKET)
    rest_at -= taken
    tl.debug_barrier()

    x = tl.where(mask, not_alpha * rest, 0.0)
    encode(
        *(x, codes, low, high, bucket, buckets, t, seed),
        *(BLOCKS, BLOCK, BUCKET, IS_STOCHASTIC),
    )

    z_1, z_2 = sum_window(index, value, w_1, w_2, v, IS_WINDOW)
    rate = tl.load(learning_rate)
    of_rest = alpha / (tl.sqrt_rn(v) + epsilon)
    dtype: tl.constexpr = parameter.dtype.element_ty
    moved = subtract(p, rate * (of_rest * rest), dtype)
    tl.store(parameter + place, moved, mask)
    step = of_rest * rest_at + z_1 / (tl.sqrt_rn(z_2) + epsilon)
    moved = subtract(p_at, rate * step, dtype)
    tl.debug_barrier()
    tl.store(parameter + at, moved, is_entry)
