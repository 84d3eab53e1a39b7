"""Whether a layer makes discrete choices: rounding, top-k, argmax."""

import numpy as np
from keras import ops

from keras_efficient.backend import nested
from keras_efficient.utils.sizes import largest


def jumps(fn, x):
    """Whether `fn` jumps somewhere on the way from `x` to a point nearby.

    Of the entry of `fn` that changes most on the way, the half of the way
    with the larger change is followed, ten times. What is left of the change
    of a continuous function is about a thousandth; a jump stays whole.
    """

    def value(x):
        y = nested.flatten(fn(x))
        y = [ops.convert_to_numpy(ops.cast(v, "float32")).ravel() for v in y]
        return np.concatenate(y)

    rng = np.random.default_rng(0)
    away = nested.map_structure(
        lambda x: ops.cast(
            0.1 * largest(x) * rng.normal(size=x.shape), x.dtype
        ),
        x,
    )

    def at(t):
        return value(nested.map_structure(lambda x, d: x + t * d, x, away))

    left, right, y_left, y_right = 0.0, 1.0, at(0.0), at(1.0)
    followed = np.argmax(np.abs(y_right - y_left))
    whole = abs(y_right[followed] - y_left[followed])
    if whole < 1e-2 * np.max(np.abs(y_left)):
        return False
    for _ in range(10):
        middle = (left + right) / 2
        y = at(middle)
        if abs(y[followed] - y_left[followed]) > abs(
            y_right[followed] - y[followed]
        ):
            right, y_right = middle, y
        else:
            left, y_left = middle, y
    return abs(y_right[followed] - y_left[followed]) > 0.2 * whole
