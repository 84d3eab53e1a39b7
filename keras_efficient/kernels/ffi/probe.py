"""The smallest parallel kernel: what it needs, all kernels need."""

import numba
import numpy as np

from keras_efficient.kernels.ffi.numba_kernel import NumbaKernel


def count(x):
    for i in numba.prange(x.size):
        x[i] += 1


def run():
    """Start the layer of threads, compile a kernel and run it.

    With one thread: a fork must not miss others that nobody has asked for.
    """
    kernel = NumbaKernel(count, "x", None, None, {"parallel": True})
    x = np.zeros(2, "int32")
    kernel.run([x], most_threads=1)
    if x.tolist() != [1, 1]:
        raise RuntimeError(f"it computes {x.tolist()} where 1 is right")
