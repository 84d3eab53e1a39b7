"""The four-bit codec of `keras_efficient.ops.quantize_4bit`, in place."""

import numpy as np

from keras_efficient.kernels.cpu.group import from_bits
from keras_efficient.kernels.cpu.group import fused_multiply_add
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.group import to_bits
from keras_efficient.kernels.cpu.group import to_float32
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.vectors import LENGTH
from keras_efficient.kernels.cpu.vectors import greatest
from keras_efficient.kernels.cpu.vectors import least
from keras_efficient.kernels.cpu.vectors import noise
from keras_efficient.kernels.cpu.vectors import pack
from keras_efficient.kernels.cpu.vectors import unpack

_F = np.float32
_ZERO, _ONE, _LAST_STEP = _F(0), _F(1), _F(15)
_FIFTEENTH = _F(1 / 15)
_BOUND_MARGIN = _F(2.0**-8)
_SMALLEST_UNIT = _F(2.0**-126)


@jit
def round_to_bfloat16(x):
    """Round a float32 to the nearest bfloat16, ties to even."""
    bits = to_bits(x)
    bits = bits + np.int32(0x7FFF) + ((bits >> 16) & np.int32(1))
    return from_bits(bits & np.int32(-0x10000))


@jit
def bfloat16_bits(x):
    """Return the upper half of a float32 that `round_to_bfloat16` returned."""
    return np.uint16((to_bits(x) >> 16) & np.int32(0xFFFF))


@jit
def fill_noise(work, at, size, position, key):
    """Write uniform noise, or the middle where `key` is negative.

    Args:
        work: float32 array.
        at: Where in `work`.
        size: How many numbers.
        position: That of the first one in the tensor.
        key: int64, the uint32 hash of step and seed, or -1.
    """
    if key < 0:
        for i in range(size):
            work[at + i] = _F(0.5)
        return
    start = np.uint32(np.uint32(key) + np.uint32(position))
    even = size // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        noise(work, at + i, np.uint32(start + np.uint32(i)))
    for i in range(even, size):
        x = mix(np.uint32(start + np.uint32(i)))
        work[at + i] = _F(np.int32(x >> np.uint32(8))) * _F(2.0**-24)


@jit
def decode(work, at, codes, low, high, fused):
    """Decode a bucket: its bytes, and its bounds as bfloat16 bits."""
    half = codes.size
    low = to_float32(low)
    unit = (to_float32(high) - low) * _FIFTEENTH
    even = half // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        unpack(codes, i, work, at + i, at + half + i, low, unit, fused)
    for i in range(even, half):
        code = np.int32(codes[i])
        for j, step in ((i, code >> 4), (half + i, code & 15)):
            if fused:
                work[at + j] = fused_multiply_add(_F(step), unit, low)
            else:
                work[at + j] = low + _F(step) * unit


@jit
def encode(work, at, codes, factor, beyond, fused):
    """Encode a bucket, `factor` times what stands at `work[at]` and after.

    Args:
        work: float32 array.
        at: Where the bucket begins.
        codes: uint8 array of half as many bytes as the bucket has entries.
        factor: float32, not negative.
        beyond: How far after an entry its noise stands.
        fused: Whether noise is added with a fused multiply-add.

    Returns:
        The bounds, as bfloat16 bits.
    """
    half = codes.size
    low, high = _bounds(work, at, half)
    # Rounding keeps their order.
    low, high = factor * low, factor * high
    low = round_to_bfloat16(low - _BOUND_MARGIN * abs(low))
    high = round_to_bfloat16(high + _BOUND_MARGIN * abs(high))
    unit = (high - low) * _FIFTEENTH
    scale = _ZERO if unit < _SMALLEST_UNIT else _ONE / unit
    even = half // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        i_lower = at + half + i
        pack(work, at + i, i_lower, codes, i, factor, low, scale, beyond, fused)
    for i in range(even, half):
        upper = _step(work, at + i, factor, low, scale, beyond, fused)
        lower = _step(work, at + half + i, factor, low, scale, beyond, fused)
        codes[i] = np.uint8(upper * np.int32(16) + lower)
    return bfloat16_bits(low), bfloat16_bits(high)


@jit
def _bounds(work, at, half):
    low = high = work[at]
    even = half // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        low = min(low, least(work, at + i, at + half + i))
        high = max(high, greatest(work, at + i, at + half + i))
    for i in range(even, half):
        for x in (work[at + i], work[at + half + i]):
            low, high = min(low, x), max(high, x)
    return low, high


@jit
def _step(work, at, factor, low, scale, beyond, fused):
    x = factor * work[at] - low
    if fused:
        x = fused_multiply_add(x, scale, work[at + beyond])
    else:
        x = x * scale + work[at + beyond]
    return np.int32(min(max(x, _ZERO), _LAST_STEP))
