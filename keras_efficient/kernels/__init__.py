"""Compiled kernels: raw arrays in, raw arrays out. They know nothing of Keras.

Three rooms: `ffi`, the bridge from tensors to kernels; `cpu`, kernels of Numba;
`gpu`, kernels of Triton. `policy` at their door says which of them serves.

No compiler and no framework is imported before the first call that needs it.
"""

from keras_efficient.kernels.ffi.numba_ffi import numba_ffi as numba_ffi
