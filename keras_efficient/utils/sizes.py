import numpy as np
from keras import ops


def largest(x):
    """Return the largest magnitude in a tensor; 0 if it is empty."""
    x = ops.convert_to_numpy(ops.cast(x, "float32"))
    return float(np.max(np.abs(x.astype("float64")), initial=0.0))
