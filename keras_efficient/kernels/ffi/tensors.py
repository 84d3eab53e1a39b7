"""Which framework tensors belong to and where they lie, without imports.

A framework that is not loaded has no tensors.
"""

import functools
import sys
from typing import NamedTuple

import numpy as np


class Spec(NamedTuple):
    """Shape and name of the dtype of an array: all that compiling needs."""

    shape: tuple
    dtype: str


# In the order in which they are asked. The types of JAX are of two packages.
_PACKAGES = {
    "jax": "jax",
    "jaxlib": "jax",
    "tensorflow": "tensorflow",
    "torch": "torch",
}


def framework_of(values):
    """Return "jax", "tensorflow", "torch", "numpy" or `None`.

    The first framework in this order that one of `values` belongs to; "numpy"
    where there are only arrays of NumPy and Python numbers, `None` where there
    is something else.
    """
    found = {_framework_of_type(type(value)) for value in values}
    for framework in _PACKAGES.values():
        if framework in found:
            return framework
    return None if None in found else "numpy"


@functools.lru_cache(maxsize=None)
def _framework_of_type(kind):
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package in _PACKAGES:
            return _PACKAGES[package]
    others = (np.ndarray, np.generic, bool, int, float)
    return "numpy" if issubclass(kind, others) else None


_NUMBERS = {bool: "bool", int: "int32", float: "float32"}


def why_not_plain(tensor):
    """Return why the memory of a tensor of PyTorch is not to be used.

    What computes by `__torch_dispatch__`, as a DTensor or a nested tensor
    does, has other memory than its shape tells, or none.

    Returns:
        String that goes on after a colon, or `None`.
    """
    torch = sys.modules["torch"]
    if is_wrapper(tensor):
        return f"a {type(tensor).__name__} is not a plain tensor"
    if tensor.layout is not torch.strided:
        return f"a tensor with layout {tensor.layout} is not dense"
    if tensor.is_neg() or tensor.is_conj():
        return "a tensor is the negative or conjugate view of another"
    return None


def is_wrapper(tensor):
    """Return whether a tensor of PyTorch computes by other tensors."""
    plain = sys.modules["torch"].Tensor.__torch_dispatch__
    return type(tensor).__torch_dispatch__ is not plain


def untraced(function):
    """Decorate a function that Dynamo is not to trace into.

    It would follow it into Numba's compiler, which takes minutes. Where Dynamo
    is not imported nobody traces; to ask for it would import Triton, whose
    LLVM ends a process that has XLA's.
    """
    disabled = []

    @functools.wraps(function)
    def call(*args):
        if "torch._dynamo" not in sys.modules:
            return function(*args)
        if not disabled:
            disabled.append(sys.modules["torch"].compiler.disable(function))
        return disabled[0](*args)

    return call


def as_array(value):
    """Give a Python number the dtype it has in Keras; return all else."""
    dtype = _NUMBERS.get(type(value))
    return value if dtype is None else np.asarray(value, dtype)


def reshape(value, shape):
    """Reshape a tensor, without the overhead of `keras.ops`."""
    if hasattr(value, "reshape"):
        return value.reshape(shape)
    return sys.modules["tensorflow"].reshape(value, shape)


def device_of(values, framework):
    """Return "cpu", "cuda", "tpu"..., or where traced code is likely to run.

    Args:
        values: Tensors of `framework`, arrays and numbers.
        framework: Name that `framework_of` returned.

    Returns:
        String: the first device that is not "cpu", or "cpu".
    """
    if framework in ("numpy", None):
        return "cpu"
    find = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[framework]
    devices = find(sys.modules[framework], values)
    devices = [{"gpu": "cuda"}.get(device, device) for device in devices]
    return next((device for device in devices if device != "cpu"), "cpu")


def _jax(jax, values):
    devices = []
    for value in values:
        if isinstance(value, jax.core.Tracer):
            devices.append(jax.default_backend())
        elif isinstance(value, jax.Array):
            devices.extend(device.platform for device in value.devices())
    return devices


def _tensorflow(tf, values):
    devices = []
    for value in values:
        if isinstance(value, (tf.Tensor, tf.Variable)):
            # ".../device:GPU:0"; empty in a graph that nobody has placed.
            device = value.device.rpartition("device:")[2].partition(":")[0]
            if not device:
                found = tf.config.get_visible_devices("GPU")
                device = "gpu" if found else "cpu"
            devices.append(device.lower())
    return devices


def _torch(torch, values):
    return [
        value.device.type for value in values if isinstance(value, torch.Tensor)
    ]


def is_within_jit_compile():
    """Return whether TensorFlow traces what XLA compiles as a whole."""
    # There is no public way to ask. Where this one is gone, a digit is lost.
    try:
        from tensorflow.python.framework import ops
        from tensorflow.python.ops import control_flow_util
    except ImportError:
        return False
    is_within = getattr(
        control_flow_util, "GraphOrParentsInXlaContext", lambda graph: False
    )
    return is_within(ops.get_default_graph())
