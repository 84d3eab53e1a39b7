"""Where Numba kernels can run, and why not."""

import functools
import importlib

from keras_efficient.kernels.ffi import cache
from keras_efficient.kernels.ffi import threads
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
    """Return why Numba cannot be used, or `None`: it is tried, once."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        return f"numba cannot be imported ({error}; pip install numba)"
    # Its compiler is a library, which may be missing or another.
    except Exception as error:
        return f"numba cannot be loaded ({first_line(error)})"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    try:
        importlib.import_module("keras_efficient.kernels.ffi.probe").run()
    except Exception as error:
        return f"numba cannot compile and run kernels ({first_line(error)})"
    return None


def remark():
    """Return what Numba lacks where it can be used, or `None`."""
    if threads.is_forked():
        return "serial: this process is a fork"
    if threads.threading_layer() == "workqueue":
        return "serial: numba has no threading layer but 'workqueue'"
    if cache.problem():
        return f"compiled anew in each process: {cache.problem()}"
    return None


def first_line(error):
    """Return an error as the short text that goes in parentheses."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else repr(error)
