"""How functions are compiled that kernels of Numba are made of."""

import functools

import numba

jit = functools.partial(numba.njit, error_model="numpy", nogil=True, cache=True)
