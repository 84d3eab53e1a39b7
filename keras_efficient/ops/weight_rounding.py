"""Weights of 16 bits that learn: what a step must not lose to rounding.

The magnitude of a float32, as its bits, is a whole number that grows with it.
Of bfloat16 these are the upper 16 bits, and float16 is the same with fewer bits
of the exponent, where numbers below 2^-14 have one distance. So a weight is
counted in steps of its 16 bits, `code`, or in parts of 1/256 of a step, `fine`:

```
fine = round(256 |x| in steps)      code = round(fine / 256)
correction = fine - 256 code        weight = sign(x) code
```

The correction is an int8 that is kept beside the weight. All is done with whole
numbers, and the sign apart, so that no compiler can change a bit of it by
leaving out casts.

Deviation from FlashOptim: its corrections are the rounding error divided by the
distance to the next 16-bit number. Bits need no division, and are the same at
the border of two exponents.
"""

from collections import namedtuple

import keras
from keras import ops

MODES = ("compensated", "stochastic", "nearest")
FINE_BITS = 8  # of a correction
HALF = 1 << (FINE_BITS - 1)

# dropped: bits of the fraction of float32 that the dtype has not;
# offset: bits of the number in float32 whose code would be 0, if the exponent
#   went on;
# infinity, nan: codes.
Format = namedtuple("Format", ("dropped", "offset", "infinity", "nan"))
FORMATS = {
    "bfloat16": Format(16, 0, 0x7F80, 0x7FC0),
    "float16": Format(13, 112 << 23, 0x7C00, 0x7E00),
}
SMALLEST_NORMAL = 2.0**-14  # of float16; below, codes are multiples of 2^-24


def is_16_bit(variable):
    """Return whether a tensor or variable has a dtype of 16 bits."""
    return keras.backend.standardize_dtype(variable.dtype) in FORMATS


def split_weight(x, dtype):
    """Split float32 into a weight of 16 bits and what that leaves of it.

    Args:
        x: float32 tensor.
        dtype: `"bfloat16"` or `"float16"`.

    Returns:
        `(weight, correction)`, the second in int8. Numbers that are beyond
        the range of the dtype become infinite, as in a cast.
    """
    fine = _magnitude(x, dtype, FINE_BITS, 0.5)
    code = ops.right_shift(fine + HALF, FINE_BITS)
    correction = fine - ops.left_shift(code, FINE_BITS)
    correction = ops.where(code < FORMATS[dtype].infinity, correction, 0)
    return _weight(code, x, dtype), ops.cast(correction, "int8")


def join_weight(weight, correction):
    """Undo `split_weight`, up to the rounding of x to 1/256 of a step.

    Any pair is valid. A correction that belongs to another weight, because
    weights were assigned, moves this one by at most half a step of its 16
    bits, and it still rounds to what it was. Nothing has to be reset.

    Args:
        weight: bfloat16 or float16 tensor.
        correction: int8 tensor of the same shape.

    Returns:
        float32 tensor.
    """
    dtype = keras.backend.standardize_dtype(weight.dtype)
    form = FORMATS[dtype]
    bits = ops.cast(ops.view(weight, "int16"), "int32")
    code = ops.bitwise_and(bits, 0x7FFF)
    is_finite = code < form.infinity
    correction = ops.where(is_finite, ops.cast(correction, "int32"), 0)
    # Not beyond 0, to the bits of a NaN.
    fine = ops.maximum(ops.left_shift(code, FINE_BITS) + correction, 0)
    magnitude = ops.left_shift(fine, form.dropped - FINE_BITS) + form.offset
    if dtype == "float16":
        small = ops.cast(fine, "float32") * 2.0 ** (-24 - FINE_BITS)
        is_small = fine < 1 << (10 + FINE_BITS)
        magnitude = ops.where(is_small, ops.view(small, "int32"), magnitude)
        # Their exponent is the largest of float32.
        magnitude = ops.where(is_finite, magnitude, magnitude + form.offset)
    sign = ops.left_shift(ops.bitwise_and(bits, -0x8000), 16)
    return ops.view(ops.bitwise_or(magnitude, sign), "float32")


def round_weight(x, dtype, noise=0.5):
    """Round float32 to 16 bits.

    Args:
        x: float32 tensor.
        dtype: `"bfloat16"` or `"float16"`.
        noise: Float or tensor in [0, 1) of the shape of x. The default rounds
            to the nearest, and away from zero in the middle of two; uniform
            noise to the right number on average.

    Returns:
        Tensor of the dtype.
    """
    return _weight(_magnitude(x, dtype, 0, noise), x, dtype)


def _magnitude(x, dtype, bits, noise):
    """Return |x| in parts of 2^-bits of a step, rounded down after noise."""
    form = FORMATS[dtype]
    drop = form.dropped - bits
    size = ops.bitwise_and(ops.view(x, "int32"), 0x7FFFFFFF)
    magnitude = size - form.offset + ops.cast(noise * 2.0**drop, "int32")
    magnitude = ops.right_shift(magnitude, drop)
    if dtype == "float16":
        is_small = size < (113 << 23)
        small = ops.abs(ops.where(is_small, x, 0.0)) * 2.0 ** (24 + bits)
        small = ops.cast(ops.floor(small + noise), "int32")
        magnitude = ops.where(is_small, small, magnitude)
    magnitude = ops.minimum(magnitude, form.infinity << bits)
    is_nan = size > 0x7F800000
    return ops.where(is_nan, form.nan << bits, magnitude)


def _weight(code, x, dtype):
    """Return the weight of a code, with the sign of x."""
    sign = ops.bitwise_and(ops.right_shift(ops.view(x, "int32"), 16), -0x8000)
    return ops.view(ops.cast(ops.bitwise_or(code, sign), "int16"), dtype)
