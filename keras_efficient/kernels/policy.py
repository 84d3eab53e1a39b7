"""Which kernel serves which tensors, and why not."""

import os
import sys
import warnings

from keras_efficient.kernels.ffi import support
from keras_efficient.kernels.ffi import tensors
from keras_efficient.kernels.ffi import threads
from keras_efficient.kernels.ffi import xla_version

VARIABLE = "KERAS_EFFICIENT_KERNELS"
CHOICES = ("auto", "off", "numba", "triton")

_chosen = None
_failed = {}  # (kernel, framework): why


def set_kernels(kernels):
    """See `keras_efficient.config.set_kernels`."""
    global _chosen
    _check(kernels, "`kernels`")
    if kernels in ("numba", "triton") and why_not_installed(kernels):
        raise RuntimeError(
            f"Kernels cannot be '{kernels}': {why_not_installed(kernels)}."
        )
    _chosen = kernels
    _failed.clear()


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
    if kernels() in ("numba", "triton"):
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
    if (kernel, framework) in _failed:
        return _failed[kernel, framework]
    if kernel == "numba":
        # Those of PyTorch run serially as they are; others are compiled anew.
        if threads.is_forked() and framework != "torch" and kernels() == "auto":
            return "this process is the fork of another"
        return support.why_not(framework, device)
    if framework != "torch":
        return f"there are no triton kernels for {framework or 'them'}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device not in (("cpu", "cuda") if interpreted else ("cuda",)):
        return "Triton kernels run on CUDA devices"
    if why_not_installed(kernel):
        return why_not_installed(kernel)
    # Each has an LLVM of its own; in this order the process would end.
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        return "Triton cannot be loaded after TensorFlow"
    return None


def why_not_installed(kernel):
    """Return why the compiler of a kernel cannot be used, or `None`."""
    if kernel == "numba":
        return support.why_not_installed()
    # Not imported, because of the LLVM mentioned above.
    if xla_version.package_folder("triton") is None:
        return "triton is not installed (pip install triton)"
    return None


def give_up(kernel, framework, error):
    """Use a kernel no more that has raised an error; warn of it.

    Returns:
        Whether it is given up: not where the user asked for it by name.
    """
    if kernels() != "auto":
        return False
    reason = f"they failed ({support.first_line(error)})"
    _failed[kernel, framework] = reason
    warnings.warn(
        f"The {kernel} kernels for {framework} are not used any more: {reason}."
        f" The portable form goes on, with the same results. "
        f"keras_efficient.config.set_kernels('{kernel}') shows the error.",
        stacklevel=2,
    )
    return True


def refuse(reason):
    """Raise an error if the user asked for a kernel by name."""
    if kernels() != "auto":
        raise RuntimeError(
            f"Kernels are set to '{kernels()}', which cannot serve these "
            f"tensors: {reason}. Choose 'auto' or 'off' with "
            f"keras_efficient.config.set_kernels or {VARIABLE}."
        )


def _check(value, name):
    if value not in CHOICES:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, CHOICES))}. "
            f"Received: {value!r}"
        )
