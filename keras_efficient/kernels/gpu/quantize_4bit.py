"""The codec of `keras_efficient.ops.quantize_4bit`, as parts of a kernel."""

import triton
import triton.language as tl

from keras_efficient.kernels.gpu.math import round_to_bfloat16
from keras_efficient.kernels.gpu.math import uniform_noise

_BOUND_MARGIN = tl.constexpr(2.0**-8)
_SMALLEST_UNIT = tl.constexpr(2.0**-126)


@triton.jit
def decode(
    codes,
    low,
    high,
    first,
    buckets,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BUCKET: tl.constexpr,
):
    """Return the error feedback of blocks."""
    COUNT: tl.constexpr = BLOCKS * BLOCK // BUCKET
    HALF: tl.constexpr = BUCKET // 2
    bucket = first + tl.arange(0, COUNT)[:, None]
    lane = tl.arange(0, BUCKET)[None, :]
    exists = bucket < buckets
    at = bucket.to(tl.int64) * HALF + lane % HALF
    code = tl.load(codes + at, exists & (lane < BUCKET), 0).to(tl.int32)
    code = (code >> tl.where(lane < HALF, 4, 0)) & 15
    lowest = tl.load(low + bucket, exists, 0.0).to(tl.float32)
    highest = tl.load(high + bucket, exists, 0.0).to(tl.float32)
    x = lowest + code.to(tl.float32) * ((highest - lowest) * (1 / 15))
    return tl.reshape(x, (BLOCKS, BLOCK))


@triton.jit
def decode_at(codes, low, high, place, mask, BUCKET: tl.constexpr):
    """Return the error feedback of some entries."""
    HALF: tl.constexpr = BUCKET // 2
    bucket = place // BUCKET
    lane = (place % BUCKET).to(tl.int32)
    code = tl.load(codes + bucket * HALF + lane % HALF, mask, 0).to(tl.int32)
    code = (code >> tl.where(lane < HALF, 4, 0)) & 15
    lowest = tl.load(low + bucket, mask, 0.0).to(tl.float32)
    highest = tl.load(high + bucket, mask, 0.0).to(tl.float32)
    return lowest + code.to(tl.float32) * ((highest - lowest) * (1 / 15))


@triton.jit
def encode(
    x,
    codes,
    low,
    high,
    first,
    buckets,
    t,
    seed,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BUCKET: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
):
    """Store the error feedback of blocks."""
    COUNT: tl.constexpr = BLOCKS * BLOCK // BUCKET
    HALF: tl.constexpr = BUCKET // 2
    bucket = first + tl.arange(0, COUNT)[:, None]
    exists = bucket < buckets
    x = tl.reshape(x, (COUNT, BUCKET))
    lowest = tl.min(x, axis=1)[:, None]
    highest = tl.max(x, axis=1)[:, None]
    lowest = round_to_bfloat16(lowest - _BOUND_MARGIN * tl.abs(lowest))
    highest = round_to_bfloat16(highest + _BOUND_MARGIN * tl.abs(highest))
    tl.store(low + bucket, lowest.to(tl.bfloat16), exists)
    tl.store(high + bucket, highest.to(tl.bfloat16), exists)
    unit = (highest - lowest) * (1 / 15)
    is_flat = unit < _SMALLEST_UNIT
    one = tl.full(unit.shape, 1.0, tl.float32)
    scale = tl.div_rn(one, tl.where(is_flat, 1.0, unit))
    scale = tl.where(is_flat, 0.0, scale)
    noise = tl.full(x.shape, 0.5, tl.float32)
    if IS_STOCHASTIC:
        place = bucket.to(tl.uint32) * BUCKET
        place = place + tl.arange(0, BUCKET)[None, :].to(tl.uint32)
        noise = uniform_noise(place, t, seed)
    code = tl.floor((x - lowest) * scale + noise)
    code = tl.minimum(tl.maximum(code, 0.0), 15.0).to(tl.int32)
    code = tl.reshape(code, (COUNT, 2, HALF))
    factor = 16 - 15 * tl.arange(0, 2)[None, :, None]
    code = tl.sum(code * factor, axis=1)
    at = bucket.to(tl.int64) * HALF + tl.arange(0, HALF)[None, :]
    tl.store(codes + at, code.to(tl.uint8), exists & (at >= 0))
