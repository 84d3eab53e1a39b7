"""Compiled kernels: raw arrays in, raw arrays out. They know nothing of Keras.

No compiler and no framework is imported before the first call that needs it.
"""

from keras_efficient.kernels.numba_ffi import numba_ffi as numba_ffi
