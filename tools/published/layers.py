"""What the state dicts have in common."""

import re

NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def count(state, pattern):
    """One more than the largest number that the group in `pattern` finds."""
    found = [re.match(pattern, key) for key in state]
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def has(state, prefix):
    return any(key.startswith(prefix) for key in state)


def layer(layer, key):
    """Yield what there is of the variables of a layer of Keras."""
    turn = {
        "Dense": dense,
        "Conv2D": conv,
        "DepthwiseConv2D": depthwise,
    }.get(type(layer).__name__)
    for variable in layer.weights:
        is_kernel = variable.name == "kernel"
        key_of = f"{key}.{NAMES[variable.name]}"
        yield variable, key_of, turn if is_kernel else same


def same(x):
    return x


def dense(x):
    """From `(outputs, inputs)`, or a convolution of one pixel."""
    return x.reshape(x.shape[:2]).T


def conv(x):
    """From `(outputs, inputs, height, width)`, or a dense layer."""
    sizes = x.shape[2:] or (1, 1)
    return x.reshape(*x.shape[:2], *sizes).transpose(2, 3, 1, 0)


def depthwise(x):
    """From `(channels, 1, height, width)`."""
    return x.transpose(2, 3, 0, 1)
