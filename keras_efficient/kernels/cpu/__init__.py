"""Kernels for the CPU, of Numba. They know nothing of Keras."""

from pathlib import Path

from keras_efficient.kernels.ffi.numba_kernel import drop_stale_cache

# They are made of functions of several files here.
drop_stale_cache(Path(__file__).parent)
