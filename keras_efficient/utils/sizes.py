import math
import re

import keras
import numpy as np
from keras import ops


def bytes_of(tree):
    """Count the bytes of the tensors in a nested structure.

    Other leaves, such as `None` and `True`, take none.
    """
    return sum(
        math.prod(leaf.shape) * _itemsize(leaf.dtype)
        for leaf in keras.tree.flatten(tree)
        if hasattr(leaf, "shape")
    )


def _itemsize(dtype):
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits.group()) // 8 if bits else 1


def largest(x):
    """Return the largest magnitude in a tensor; 0 if it is empty."""
    x = ops.convert_to_numpy(ops.cast(x, "float32"))
    return float(np.max(np.abs(x.astype("float64")), initial=0.0))
