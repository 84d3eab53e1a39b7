"""Which kernel serves which tensors, and why not."""

import functools
import importlib
import os
import sys

from keras_efficient.kernels import tensors
from keras_efficient.kernels import xla_version

VARIABLE = "KERAS_EFFICIENT_KERNELS"
CHOICES = ("auto", "off", "numba", "triton")

_FRAMEWORKS = {
    "numba": ("jax", "tensorflow", "torch", "numpy"),
    "triton": ("torch",),
}

_chosen = None


def set_kernels(kernels):
    """See `keras_efficient.config.set_kernels`."""
    global _chosen
    _check(kernels, "`kernels`")
    if kernels in _FRAMEWORKS and why_not_installed(kernels):
        raise RuntimeError(
            f"Kernels cannot be '{kernels}': {why_not_installed(kernels)}."
        )
    _chosen = kernels


def kernels():
    """See `keras_efficient.config.kernels`."""
    if _chosen is not None:
        return _chosen
    value = os.environ.get(VARIABLE) or "auto"
    _check(value, f"The environment variable {VARIABLE}")
    return value


def choose(*values):
    """Return which kernel the policy gives to tensors.

    Args:
        *values: Tensors of JAX (also tracers), TensorFlow or PyTorch, arrays
            of NumPy, numbers.

    Returns:
        "numba", "triton", or `None` for the portable form.

    Raises:
        RuntimeError: if the user asked for a kernel by name and it cannot
            serve these tensors.
    """
    if kernels() == "off":
        return None
    framework = tensors.framework_of(values)
    return choose_for(framework, tensors.device_of(values, framework))


def choose_for(framework, device):
    """Return what `choose` returns, by the names of framework and device."""
    asked = kernels()
    if asked == "off":
        return None
    kernel = wanted(framework, device)
    reason = why_not(kernel, framework, device)
    if reason and asked != "auto":
        raise RuntimeError(
            f"Kernels are set to '{asked}', which cannot serve "
            f"{framework or 'other'} tensors on '{device}': {reason}. Choose "
            "'auto' or 'off' with keras_efficient.config.set_kernels or "
            f"{VARIABLE}."
        )
    return None if reason else kernel


def wanted(framework, device):
    """Return the kernel to take if it can run: that asked for, or the best."""
    if kernels() in _FRAMEWORKS:
        return kernels()
    return "numba" if device == "cpu" else "triton"


def why_not(kernel, framework, device):
    """Return why a kernel cannot serve a framework on a device, or `None`.

    Args:
        kernel: "numba" or "triton".
        framework: "jax", "tensorflow", "torch", "numpy", or `None` for
            tensors of none of these.
        device: "cpu", "cuda" or another name.

    Returns:
        String that goes on after a colon, or `None`.
    """
    if kernel == "numba" and device != "cpu":
        return "Numba kernels run on the CPU"
    if framework not in _FRAMEWORKS[kernel]:
        return f"there are no {kernel} kernels for {framework or 'them'}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    places = ("cpu", "cuda") if interpreted else ("cuda",)
    if kernel == "triton" and device not in places:
        return "Triton kernels run on CUDA devices"
    if why_not_installed(kernel):
        return why_not_installed(kernel)
    # Each has an LLVM of its own; in this order the process would end.
    if kernel == "triton" and "tensorflow" in sys.modules:
        if "triton" not in sys.modules:
            return "Triton cannot be loaded after TensorFlow"
    if kernel == "numba" and framework in ("jax", "tensorflow"):
        return xla_version.why_not(framework)
    return None


@functools.lru_cache(maxsize=None)
def why_not_installed(kernel):
    """Return why the compiler of a kernel cannot be used, or `None`."""
    # Not imported, because of the LLVM mentioned above.
    if kernel == "triton" and xla_version.package_folder("triton") is None:
        return "triton is not installed (pip install triton)"
    if kernel == "numba":
        try:
            numba = importlib.import_module("numba")
        except ImportError as error:
            return f"numba cannot be imported ({error}; pip install numba)"
        if numba.config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set"
    return None


def _check(value, name):
    if value not in CHOICES:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, CHOICES))}. "
            f"Received: {value!r}"
        )
