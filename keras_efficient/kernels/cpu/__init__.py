"""Kernels for the CPU, of Numba. They know nothing of Keras."""

from pathlib import Path

from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.ffi.numba_kernel import drop_stale_cache


@jit
def _nothing():
    """Not called: it tells where Numba keeps what is compiled here."""


# Kernels are made of functions of several files here.
drop_stale_cache(Path(__file__).parent, _nothing.stats.cache_path)
