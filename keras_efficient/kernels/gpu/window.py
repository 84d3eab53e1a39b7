"""The window of MicroAdam, as parts of a kernel: an entry a lane.

What the entries of a block add up to is found by comparing each of the 30 with
each, a tenth of the work of comparing them with the 256 of the block.
"""

import triton
import triton.language as tl

from keras_efficient.kernels.gpu.math import round_to_bfloat16
from keras_efficient.kernels.gpu.table import pointer

_LAST_STEP = tl.constexpr(2**31 - 1)


@triton.jit
def window_kernel(
    table,
    weights,
    momentum_bias,
    velocity_bias,
    step,
    log_b_1,
    c_1,
    log_b_2,
    c_2,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    IS_WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Tell which row is the oldest, and what each row will count.

    No state is written before the last launch has succeeded: else the portable
    form could not go on from it.
    """
    program = tl.program_id(0)
    written = pointer(table + program * COLUMNS, 4, tl.int32, 4)
    weights += program * (2 * ROWS + 1)
    t = tl.load(step)
    row = tl.arange(0, ROWS)
    steps = tl.load(written + row, row < WINDOW, _LAST_STEP)
    oldest = tl.argmin(steps, axis=0)
    tl.store(weights + 2 * ROWS, oldest.to(tl.float32))
    steps = tl.where(row == oldest, t, steps)
    age = tl.maximum(t - steps, 0).to(tl.float32)
    counts = (steps > 0) & (row < WINDOW)
    w_1 = tl.where(counts, tl.exp2(age * log_b_1), 0.0)
    w_2 = tl.where(counts, tl.exp2(age * log_b_2), 0.0)
    if IS_WINDOW:
        w_1 /= tl.sum(w_1)
        w_2 /= tl.sum(w_2)
    else:
        w_1 *= c_1 / tl.load(momentum_bias)
        w_2 *= c_2 / tl.load(velocity_bias)
    tl.store(weights + row, w_1)
    tl.store(weights + ROWS + row, w_2)


@triton.jit
def update_window(
    a,
    indices,
    values,
    weights,
    block,
    blocks,
    WINDOW: tl.constexpr,
    K: tl.constexpr,
    WINDOW_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the largest entries of blocks in the row that is free.

    Args:
        a: Blocks, (BLOCKS, BLOCK).
        indices: Pointer, as are `values` and `weights` of `window_kernel`.
        values: Pointer.
        weights: Pointer.
        block: Numbers of the blocks, (BLOCKS, 1).
        blocks: How many there are in all.

    Returns:
        Of the entries of the window, (BLOCKS, WINDOW_SIZE): which there are,
        their indices, their values, the weights of their rows in both
        moments, and what has just been taken there; and what it leaves of
        `a`.
    """
    lane = tl.arange(0, WINDOW_SIZE)
    is_lane = lane < WINDOW * K
    row = tl.load(weights + 2 * ROWS).to(tl.int32)
    w_1 = tl.load(weights + lane // K, is_lane, 0.0)[None, :]
    w_2 = tl.load(weights + ROWS + lane // K, is_lane, 0.0)[None, :]
    exists = (block < blocks) & is_lane[None, :]
    is_new = (lane // K == row)[None, :]
    at = (lane // K).to(tl.int64)[None, :] * blocks + block
    at = at * K + (lane % K)[None, :]
    index = tl.load(indices + at, exists & ~is_new, 0).to(tl.int32)
    value = tl.load(values + at, exists & ~is_new, 0.0).to(tl.float32)
    # Magnitudes compare as their bits do, and Hopper has one instruction that
    # finds the largest integer of a warp. -1: was taken.
    left = tl.abs(a).to(tl.int32, bitcast=True)
    entry = tl.arange(0, BLOCK)[None, :]
    signed_entry = 2 * entry + (a < 0).to(tl.int32)
    rest = a
    taken = tl.zeros_like(value)
    for i in tl.static_range(K):
        largest = tl.max(left, axis=1)[:, None]
        found = tl.where(left == largest, signed_entry, 2 * BLOCK)
        found = tl.min(found, axis=1)[:, None]
        x = largest.to(tl.float32, bitcast=True)
        x = tl.where(found & 1 == 1, -x, x)
        if values.dtype.element_ty == tl.bfloat16:
            x = round_to_bfloat16(x)
        is_found = entry == found >> 1
        rest = tl.where(is_found, a - x, rest)
        left = tl.where(is_found, -1, left)
        is_here = is_new & (lane % K == i)[None, :]
        index = tl.where(is_here, found >> 1, index)
        value = tl.where(is_here, x, value)
        taken = tl.where(index == found >> 1, x, taken)
    new = exists & is_new
    tl.store(indices + at, index.to(indices.dtype.element_ty), new)
    tl.store(values + at, value.to(values.dtype.element_ty), new)
    return exists, index, value, w_1, w_2, taken, rest


@triton.jit
def sum_window(index, value, w_1, w_2, v, IS_WINDOW: tl.constexpr):
    """Return both moments at each entry of the window."""
    same = tl.trans(index)[:, :, None] == index[None, :, :]
    same = same.to(tl.float32)
    z_1 = _sum_of_same(same, w_1 * value)
    z_2 = _sum_of_same(same, w_2 * value * value)
    if IS_WINDOW:
        held = _sum_of_same(same, w_2 + tl.zeros_like(value))
        z_2 += tl.maximum(1 - held, 0.0) * v
    return z_1, z_2


@triton.jit
def _sum_of_same(same, x):
    # Along the first axis a thread adds up what it holds itself.
    return tl.sum(same * tl.trans(x)[:, :, None], axis=0)
