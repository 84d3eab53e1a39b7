"""Streams as 32-bit integers, in which adding is exactly undone.

A stream holds `i = round(2^16 x)`. Integer addition has no rounding error, so
`(i + j) - j = i` bit for bit, and a block that adds `round(2^16 f(x))` and
later subtracts the same number reconstructs its input exactly. Rounding is
passed straight through by gradients.

Values reach from -32768 to 32768 in steps of 1.5e-5. What leaves this range
becomes NaN, as what is not a number or not finite does, and stays NaN: the
smallest integer stands for it.
"""

from keras import ops

from keras_efficient import backend
from keras_efficient.backend import nested

SCALE = 2.0**16
LIMIT = 2.0**31  # integers are below
NAN = -(2**31)


@backend.not_differentiable
def to_fixed(x):
    """Return `round(2^16 x)` as int32."""
    i = ops.round(x * SCALE)
    return ops.cast(ops.where(ops.abs(i) < LIMIT, i, -LIMIT), "int32")


def to_float(i, dtype):
    """Return `2^-16 i`."""
    x = ops.cast(i, dtype) / SCALE
    return ops.where(ops.equal(i, NAN), float("nan"), x)


# `x` rounded to what `to_fixed` keeps, its gradient passed straight through.
round_to_fixed = backend.custom_vjp(
    lambda x: (to_float(to_fixed(x), x.dtype), ()),
    lambda _, cotangent: (cotangent,),
)


class FixedPoint:
    """A stream as `couple` and `uncouple` see it, with its integers.

    It can be added, subtracted and negated.
    """

    def __init__(self, values):
        self.values = values

    @classmethod
    def of(cls, x):
        return cls(to_fixed(x))

    def floats(self, dtype):
        return to_float(self.values, dtype)

    @property
    def shape(self):
        return self.values.shape

    def __add__(self, other):
        if not isinstance(other, FixedPoint):
            return NotImplemented
        return type(self)(self._sum(self.values, other.values))

    def __neg__(self):  # the integer of NaN is its own negative
        return type(self)(-self.values)

    def __sub__(self, other):
        if not isinstance(other, FixedPoint):
            return NotImplemented
        return self + -other

    def __array__(self, *args, **kwargs):
        raise TypeError(_ONLY_ADDS)

    __jax_array__ = __array__

    @staticmethod
    def _sum(a, b):
        """The sum; NaN if `a` or `b` is, or if it has the sign of neither."""
        total = a + b
        overflow = (a ^ total) & (b ^ total) < 0
        nan = ops.logical_or(ops.equal(a, NAN), ops.equal(b, NAN))
        return ops.where(ops.logical_or(overflow, nan), NAN, total)


class FixedPointFloats(FixedPoint):
    """The same with floats, for a run that stores its activations."""

    @classmethod
    def of(cls, x):
        return cls(round_to_fixed(x))

    def floats(self, dtype):
        return self.values

    @staticmethod
    def _sum(a, b):
        return round_to_fixed(a + b)


def to_kind(streams, kind):
    """Return streams as `couple` and `uncouple` see them.

    Args:
        streams: Nested structure of float tensors.
        kind: `FixedPoint`, `FixedPointFloats`, or `None` for floats.
    """
    return nested.map_structure(kind.of, streams) if kind else streams


def to_floats(streams, kind, dtype):
    """Undo `to_kind`."""
    if kind is None:
        return streams
    return nested.map_structure(lambda x: x.floats(dtype), streams)


_ONLY_ADDS = (
    "With `exact=True` streams can be added, subtracted and negated in "
    "`couple` and `uncouple` and given to `evaluate`, nothing else. Move other "
    "operations into a sub-layer, or use `exact=False`."
)
