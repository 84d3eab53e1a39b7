"""What kernels must know of the framework they stand in for."""

import functools
import sys

from keras_efficient.kernels.ffi.tensors import framework_of


def multiplies_and_adds_at_once(values):
    """Return whether the portable form would round once in `x * y + z`.

    XLA lets the CPU do so where it can; step by step, frameworks do not.
    """
    framework = framework_of(values)
    if framework == "jax":
        tracer = sys.modules["jax"].core.Tracer
        return _cpu_can() and any(isinstance(x, tracer) for x in values)
    if framework == "tensorflow":
        return _cpu_can() and _is_within_jit_compile()
    return False


@functools.lru_cache(maxsize=None)
def _cpu_can():
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return bool(features.get("fma") or features.get("neon"))


def _is_within_jit_compile():
    # There is no public way to ask; a wrong answer costs a last digit.
    try:
        from tensorflow.python.framework import ops
        from tensorflow.python.ops import control_flow_util
    except ImportError:
        return False
    is_within = getattr(
        control_flow_util, "GraphOrParentsInXlaContext", lambda graph: False
    )
    return is_within(ops.get_default_graph())
