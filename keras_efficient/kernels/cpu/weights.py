"""Weights that move: float32, and bfloat16 as `ops.weight_rounding` rounds it.

A weight of bfloat16 is joined with its correction, decays, moves and is
rounded, all in float32 and in registers.
"""

from collections import namedtuple

import numpy as np
from numba import types
from numba.extending import overload

from keras_efficient.kernels.cpu.group import from_bits
from keras_efficient.kernels.cpu.group import fused_multiply_add
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.group import to_bits
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.ffi.tensors import reshape

_INFINITY = np.int32(0x7F80)  # of bfloat16
_NAN = np.int32(0x7FC00000)  # of float32
_NONE = np.int32(0)

# rate: learning rate; decay: that of the weights, for bfloat16; is_random:
#   whether weights without corrections are rounded at random; noise: key of
#   that; fused: whether there is one rounding in `x * y + z`.
Rounding = namedtuple(
    "Rounding", ("rate", "decay", "is_random", "noise", "fused")
)


def correction_of(row):
    """Return the correction of a row, or an empty matrix."""
    if row.correction is None:
        return np.zeros((1, 0), "int8")
    return row.correction


def places_of(row):
    """Return the places of a row's blocks, or an empty vector."""
    if row.places is None:
        return np.zeros(0, "int32")
    return reshape(row.places, (-1,))


@jit
def weight_noise(step, seed):
    """Return the key of the noise for the weights of a tensor."""
    return mix(np.uint32(step) + mix(np.uint32(-1 - seed)))


def move(parameter, correction, update, start, rounding):
    """Subtract the learning rate times an update.

    Args:
        parameter: float32 vector, or bits of bfloat16 as uint16.
        correction: int8 vector of all the parameter, empty for none.
        update: float32 vector, at least as long as what moves.
        start: The place of the first entry in the whole parameter.
        rounding: `Rounding`.
    """


@overload(move)
def _move(parameter, correction, update, start, rounding):
    return _BY_DTYPE[parameter.dtype]


def _move_float32(parameter, correction, update, start, rounding):
    rate, fused = rounding.rate, rounding.fused
    if fused:
        for i in range(parameter.size):
            parameter[i] = fused_multiply_add(-rate, update[i], parameter[i])
    else:
        for i in range(parameter.size):
            parameter[i] = parameter[i] - rate * update[i]


def _move_bfloat16(parameter, correction, update, start, rounding):
    if correction.size:
        correction = correction[start : start + parameter.size]
        for i in range(parameter.size):
            x = _moved(parameter[i], correction[i], update[i], rounding)
            parameter[i], correction[i] = _split(x)
        return
    for i in range(parameter.size):
        x = _moved(parameter[i], _NONE, update[i], rounding)
        noise = np.int32(0x8000)
        if rounding.is_random:
            key = np.uint32(np.uint32(start + i) + rounding.noise)
            noise = np.int32(mix(key) >> np.uint32(16))
        parameter[i] = _round(x, noise)


_BY_DTYPE = {types.float32: _move_float32, types.uint16: _move_bfloat16}


@jit
def _moved(weight, correction, update, rounding):
    x = _join(np.int32(weight), np.int32(correction))
    decayed = x * rounding.decay
    if rounding.fused:
        x = fused_multiply_add(-decayed, rounding.rate, x)
        return fused_multiply_add(-rounding.rate, update, x)
    return x - decayed * rounding.rate - rounding.rate * update


@jit
def _join(bits, correction):
    code = bits & np.int32(0x7FFF)
    # None beside infinity, and none below 0 beside 0; in one comparison.
    below = correction >> 31  # -1 or 0
    is_right = np.uint32(code + below) < np.uint32(_INFINITY + below)
    correction = correction if is_right else _NONE
    return from_bits((bits << 16) + (correction << 8))


@jit
def _split(x):
    """Return the weight, and as the correction the last 8 of 24 bits."""
    bits = to_bits(x)
    size = _size(bits) + np.int32(0x80)
    code = (size + np.int32(0x8000)) >> 16
    correction = size >> 8 if code < _INFINITY else _NONE
    return _with_sign(code, bits), np.int8(correction)


@jit
def _round(x, noise):
    """Round down after adding noise, of which 2^16 are a step."""
    bits = to_bits(x)
    size = _size(bits)
    noise = noise if size < _NAN else _NONE
    return _with_sign((size + noise) >> 16, bits)


@jit
def _size(bits):
    """Return the bits of a magnitude; those of a NaN, as results have it."""
    return min(bits & np.int32(0x7FFFFFFF), _NAN)


@jit
def _with_sign(code, bits):
    return np.uint16(code | ((bits >> 16) & np.int32(0x8000)))
