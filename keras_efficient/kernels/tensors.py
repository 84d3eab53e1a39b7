"""Which framework tensors belong to and where they lie, without imports.

A framework that is not loaded has no tensors, so `sys.modules` tells enough.
"""

import sys
from typing import NamedTuple

import numpy as np


class Spec(NamedTuple):
    """Shape and name of the dtype of an array: all that compiling needs."""

    shape: tuple
    dtype: str


_TYPES = (
    ("jax", ("Array",)),
    ("tensorflow", ("Tensor", "Variable")),
    ("torch", ("Tensor",)),
)


def framework_of(values):
    """Return "jax", "tensorflow", "torch", "numpy" or `None`.

    The first framework in this order that one of `values` belongs to; "numpy"
    where there are only arrays of NumPy and Python numbers, `None` where there
    is something else.
    """
    for framework, names in _TYPES:
        module = sys.modules.get(framework)
        types = [getattr(module, name, None) for name in names]
        types = tuple(filter(None, types))  # empty while it is imported
        if any(isinstance(value, types) for value in values):
            return framework
    others = (np.ndarray, np.generic, bool, int, float)
    if all(isinstance(value, others) for value in values):
        return "numpy"
    return None


def as_array(value):
    """Give a Python number the dtype it has in Keras; return all else."""
    for number, dtype in ((bool, "bool"), (int, "int32"), (float, "float32")):
        if isinstance(value, number) and not isinstance(value, np.generic):
            return np.asarray(value, dtype)
    return value


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
