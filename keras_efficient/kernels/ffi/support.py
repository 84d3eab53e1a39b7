"""Where Numba kernels can run, and why not."""

import functools
import importlib

from keras_efficient.kernels.ffi import xla_version

FRAMEWORKS = ("jax", "tensorflow", "torch", "numpy")


def why_not(framework, device):
    """Return why no kernel can run on tensors, or `None`.

    Args:
        framework: Name that `tensors.framework_of` returned.
        device: Name that `tensors.device_of` returned.

    Returns:
        String that goes on after a colon, or `None`.
    """
    if device != "cpu":
        return "Numba kernels run on the CPU"
    if framework not in FRAMEWORKS:
        return f"there are no numba kernels for {framework or 'them'}"
    if why_not_installed():
        return why_not_installed()
    if framework in ("jax", "tensorflow"):
        return xla_version.why_not(framework)
    return None


@functools.lru_cache(maxsize=None)
def why_not_installed():
    """Return why Numba cannot be used, or `None`."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        return f"numba cannot be imported ({error}; pip install numba)"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    return None
