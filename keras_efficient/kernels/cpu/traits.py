"""What kernels must know of the framework they stand in for."""

import functools
import sys

from keras_efficient.kernels.ffi.tensors import framework_of
from keras_efficient.kernels.ffi.tensors import is_within_jit_compile


def multiplies_and_adds_at_once(values):
    """Return whether the portable form would round once in `x * y + z`.

    XLA lets the CPU do so where it can; step by step, frameworks do not.
    """
    framework = framework_of(values)
    if framework == "jax":
        tracer = sys.modules["jax"].core.Tracer
        return _cpu_can() and any(isinstance(x, tracer) for x in values)
    if framework == "tensorflow":
        return _cpu_can() and is_within_jit_compile()
    return False


@functools.lru_cache(maxsize=None)
def _cpu_can():
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return bool(features.get("fma") or features.get("neon"))
