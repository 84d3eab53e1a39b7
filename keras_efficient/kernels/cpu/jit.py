"""How functions are compiled that kernels of Numba are made of."""

import functools

from keras_efficient.kernels.ffi import cache


def jit(function=None, **options):
    """Compile with the options that kernels have."""
    if function is None:
        return functools.partial(jit, **options)
    defaults = {"error_model": "numpy", "nogil": True, "cache": True}
    return cache.njit(function, {**defaults, **options})
