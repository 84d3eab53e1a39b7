"""One tensor as two streams, and back."""

from keras import ops


def split(x, axis):
    """Halve `x` along `axis`; leave it alone if that is `None`."""
    if axis is None:
        return x
    return tuple(ops.split(x, [x.shape[axis] // 2], axis=axis))


def join(streams, axis):
    """Undo `split`."""
    return streams if axis is None else ops.concatenate(streams, axis=axis)
