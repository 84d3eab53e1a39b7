"""Checks of what users give, with one form of message."""

import numbers

import keras
import numpy as np


def check_integers(least, **values):
    """Raise an error unless each value is an integer of at least `least`."""
    for name, value in values.items():
        is_integer = isinstance(value, numbers.Integral)
        if isinstance(value, bool) or not is_integer or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. "
                f"Received: {name}={value!r}"
            )


def check_numbers(interval, **values):
    """Raise an error unless each value is a number of an interval.

    Args:
        interval: String such as `"[0, 1)"` or `"(0, inf)"`; NaN is in none.
        **values: The arguments, by their names.
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in values.items():
        is_number = isinstance(value, numbers.Real)
        if isinstance(value, bool) or not (
            is_number
            and (low < value or interval[0] == "[" and low == value)
            and (value < high or interval[-1] == "]" and value == high)
        ):
            raise ValueError(
                f"`{name}` must be in {interval}. Received: {name}={value!r}"
            )


def as_array(x, dtype=None):
    """Return an array of what a user gave: an array, lists, or a tensor.

    `np.asarray` takes no tensor that is on a GPU or needs a gradient.
    """
    if not isinstance(x, np.ndarray):  # which this would copy
        x = keras.ops.convert_to_numpy(x)
    return np.asarray(x, dtype)
