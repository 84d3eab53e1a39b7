"""The four-bit codec of `keras_efficient.ops.quantize_4bit`, in place."""

import functools

import numba
import numpy as np

from keras_efficient.kernels.numba_group import from_bits
from keras_efficient.kernels.numba_group import fused_multiply_add
from keras_efficient.kernels.numba_group import mix
from keras_efficient.kernels.numba_group import to_bits
from keras_efficient.kernels.numba_group import to_float32
from keras_efficient.kernels.numba_vectors import LENGTH
from keras_efficient.kernels.numba_vectors import fill
from keras_efficient.kernels.numba_vectors import greatest
from keras_efficient.kernels.numba_vectors import least
from keras_efficient.kernels.numba_vectors import pack
from keras_efficient.kernels.numba_vectors import unpack

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_FIFTEENTH = _F(1 / 15)
_BOUND_MARGIN = _F(2.0**-8)
_SMALLEST_UNIT = _F(2.0**-126)

_jit = functools.partial(
    numba.njit, error_model="numpy", nogil=True, cache=True
)


@_jit
def round_to_bfloat16(x):
    """Round a float32 to the nearest bfloat16, ties to even."""
    bits = to_bits(x)
    bits = bits + np.int32(0x7FFF) + ((bits >> 16) & np.int32(1))
    return from_bits(bits & np.int32(-0x10000))


@_jit
def bfloat16_bits(x):
    """Return the upper half of a float32 that `round_to_bfloat16` returned."""
    return np.uint16((to_bits(x) >> 16) & np.int32(0xFFFF))


@_jit
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
    for i in range(size):
        x = mix(np.uint32(np.uint32(i) + start))
        work[at + i] = _F(np.int32(x >> np.uint32(8))) * _F(2.0**-24)


@_jit
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


@_jit
def bounds(work, at, size, factor):
    """Return bounds of `factor` times the entries of a bucket.

    They are float32 that bfloat16 holds. The factor is not negative, so that
    rounding keeps the order of the entries.
    """
    low = high = work[at]
    even = size // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        low = min(low, least(work, at + i))
        high = max(high, greatest(work, at + i))
    for i in range(even, size):
        low, high = min(low, work[at + i]), max(high, work[at + i])
    low, high = factor * low, factor * high
    low = round_to_bfloat16(low - _BOUND_MARGIN * abs(low))
    return low, round_to_bfloat16(high + _BOUND_MARGIN * abs(high))


@_jit
def inverse_unit(low, high):
    unit = (high - low) * _FIFTEENTH
    return _ZERO if unit < _SMALLEST_UNIT else _ONE / unit


@_jit
def spread(work, at, size, value):
    """Write a number to all places of a bucket."""
    even = size // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        fill(work, at + i, value)
    for i in range(even, size):
        work[at + i] = value


@_jit
def pack_steps(work, at, codes):
    """Write the bytes of a bucket, of whole numbers from 0 to 15."""
    half = codes.size
    even = half // LENGTH * LENGTH
    for i in range(0, even, LENGTH):
        pack(work, at + i, at + half + i, codes, i)
    for i in range(even, half):
        both = work[at + i] * _F(16) + work[at + half + i]
        codes[i] = np.uint8(np.int32(both))
