"""One tensor as two streams, and back."""

from keras import ops

from keras_efficient.autodiff.fixed_point import FixedPoint


def split(x, axis, size=None):
    """Split `x` along `axis`; leave it alone if that is `None`.

    Args:
        x: Tensor or `FixedPoint`.
        axis: Integer or `None`.
        size: Integer, of the first part. Defaults to `None`, half of `x`.
    """
    if axis is None:
        return x
    if isinstance(x, FixedPoint):
        return tuple(map(type(x), split(x.values, axis, size)))
    size = x.shape[axis] // 2 if size is None else size
    return tuple(ops.split(x, [size], axis=axis))


def join(streams, axis):
    """Undo `split`."""
    if axis is None:
        return streams
    if isinstance(streams[0], FixedPoint):
        return type(streams[0])(join([x.values for x in streams], axis))
    return ops.concatenate(streams, axis=axis)
