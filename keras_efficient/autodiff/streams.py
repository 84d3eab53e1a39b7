"""One tensor as two streams, and back."""

from keras import ops

from keras_efficient.autodiff.fixed_point import FixedPoint


def split(x, axis):
    """Halve `x` along `axis`; leave it alone if that is `None`."""
    if axis is None:
        return x
    if isinstance(x, FixedPoint):
        return tuple(map(type(x), split(x.values, axis)))
    return tuple(ops.split(x, [x.shape[axis] // 2], axis=axis))


def join(streams, axis):
    """Undo `split`."""
    if axis is None:
        return streams
    if isinstance(streams[0], FixedPoint):
        return type(streams[0])(join([x.values for x in streams], axis))
    return ops.concatenate(streams, axis=axis)
