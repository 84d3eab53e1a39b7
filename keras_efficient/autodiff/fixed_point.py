"""Streams as 32-bit integers, in which adding is exactly undone.

A stream holds `i = round(2^16 x)`. Integer addition has no rounding error, so
`(i + j) - j = i` bit for bit, and a block that adds `round(2^16 f(x))` and
later subtracts the same number reconstructs its input exactly. Rounding is
passed straight through by gradients.

Values reach from -32768 to 32768 in steps of 1.5e-5.
"""

from keras import ops

from keras_efficient import backend

SCALE = 2.0**16
LIMIT = 2.0**15 - 2.0**-8  # the last float32 that is a valid int32 in steps


@backend.not_differentiable
def to_fixed(x):
    """Return `round(2^16 x)` as int32."""
    x = ops.clip(x, -LIMIT, LIMIT)
    return ops.cast(ops.round(x * SCALE), "int32")


def to_float(i, dtype):
    return ops.cast(i, dtype) / SCALE


# `x` rounded to what `to_fixed` keeps, its gradient passed straight through.
round_to_fixed = backend.custom_vjp(
    lambda x: (to_float(to_fixed(x), x.dtype), ()),
    lambda _, cotangent: (cotangent,),
)
