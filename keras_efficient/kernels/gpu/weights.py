"""Weights that move: float32, and bfloat16 as `ops.weight_rounding` rounds it.

What is written as bfloat16 is a number that it holds: no cast rounds, which the
interpreter of Triton does otherwise than a GPU.
"""

import triton
import triton.language as tl

from keras_efficient.kernels.gpu.math import uniform_noise

NEAREST = tl.constexpr(0)
STOCHASTIC = tl.constexpr(1)
COMPENSATED = tl.constexpr(2)


def rounding_of(row, arguments):
    """Return one of the constants above for rows like this one."""
    if row.correction is not None:
        return COMPENSATED.value
    is_random = arguments.weight_rounding == "stochastic"
    return (STOCHASTIC if is_random else NEAREST).value


@triton.jit
def load_weight(parameter, correction, place, mask, ROUNDING: tl.constexpr):
    """Return weights in float32."""
    x = tl.load(parameter + place, mask, 0.0).to(tl.float32)
    if ROUNDING == COMPENSATED:
        c = tl.load(correction + place, mask, 0).to(tl.int32)
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        c = tl.where(size < 0x7F800000, c, 0)
        size = tl.maximum(size + c * 256, 0)
        x = _with_sign(size, bits)
    return x


@triton.jit
def store_weight(
    parameter,
    correction,
    place,
    mask,
    x,
    update,
    rate,
    row_decay,
    step,
    seed,
    ROUNDING: tl.constexpr,
):
    """Subtract decay and `rate * update` from weights, and store them.

    Args:
        x: What `load_weight` returned.
        row_decay: Pointer to the bits of the decay, as int64.
        step: Number of this step, for noise, as is `seed`.
    """
    dtype: tl.constexpr = parameter.dtype.element_ty
    if dtype == tl.float32:
        tl.store(parameter + place, x - rate * update, mask)
    else:
        decay = tl.load(row_decay).to(tl.int32).to(tl.float32, bitcast=True)
        x = x - x * decay * rate - rate * update
        bits = x.to(tl.int32, bitcast=True)
        size = tl.minimum(bits & 0x7FFFFFFF, 0x7FC00000)
        if ROUNDING == COMPENSATED:
            fine = (size + 0x80) >> 8
            code = (fine + 0x80) >> 8
            c = tl.where(code < 0x7F80, fine - (code << 8), 0)
            tl.store(correction + place, c.to(tl.int8), mask)
        else:
            noise = tl.full(size.shape, 0x8000, tl.int32)
            if ROUNDING == STOCHASTIC:
                noise = uniform_noise(place.to(tl.uint32), step, -1 - seed)
                noise = (noise * 65536.0).to(tl.int32)
            code = (size + tl.where(size < 0x7FC00000, noise, 0)) >> 16
        tl.store(
            parameter + place, _with_sign(code << 16, bits).to(dtype), mask
        )


@triton.jit
def _with_sign(size, bits):
    return (size | (bits & -0x80000000)).to(tl.float32, bitcast=True)
