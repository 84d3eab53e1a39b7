"""How many threads kernels may take, and where they may take only one.

Numba takes one for each core, whatever limit the user has set for the
framework. These limits are kept, and kernels keep to them.
"""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor

# Variables that limit the threads of a framework; PyTorch is asked itself.
_VARIABLES = {
    "jax": ("OMP_NUM_THREADS", "PJRT_NPROC", "NPROC"),
    "tensorflow": ("OMP_NUM_THREADS",),
    "numpy": ("OMP_NUM_THREADS",),
}

_asked = None
_is_forked = False
# What handlers of XLA read at each call, and the framework that runs them.
_of_handlers = ctypes.c_int64(sys.maxsize)
_handlers_of = None


def set_num_threads(number):
    """See `keras_efficient.config.set_num_threads`."""
    global _asked
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if number is not None and not (is_number and number >= 1):
        raise ValueError(
            "`number` must be a positive integer, or None for the limit of "
            f"the framework. Received: {number!r}"
        )
    _asked = number
    if _handlers_of:
        limit_handlers(_handlers_of)


def num_threads():
    """Return what `set_num_threads` was called with."""
    return _asked


def limit(framework):
    """Return the most threads that kernels on tensors of a framework take.

    Args:
        framework: Name that `tensors.framework_of` returned.
    """
    import numba

    if _is_forked:
        return 1
    limits = [numba.config.NUMBA_NUM_THREADS]
    limits += [_asked] if _asked else _of_framework(framework)
    return max(1, min(limits))


def _of_framework(framework):
    if framework == "torch":
        return [sys.modules["torch"].get_num_threads()]
    # OpenMP takes a list, too: a number for each level of nesting.
    texts = [
        os.environ.get(variable, "").partition(",")[0].strip()
        for variable in _VARIABLES[framework]
    ]
    limits = [int(text) for text in texts if text.isdecimal() and int(text)]
    if framework == "tensorflow":
        config = sys.modules["tensorflow"].config.threading
        limits.append(config.get_intra_op_parallelism_threads())
    return [number for number in limits if number]  # 0: no limit


def limit_handlers(framework):
    """Let handlers of XLA keep to the limit of a framework."""
    global _handlers_of
    _handlers_of = framework
    _of_handlers.value = limit(framework)


LIMIT_OF_HANDLERS = ctypes.addressof(_of_handlers)


def run(function, args, most):
    """Call a compiled function with at most so many threads of Numba."""
    import numba

    before = numba.get_num_threads()
    if most >= before:
        function(*args)
        return
    numba.set_num_threads(most)
    try:
        function(*args)
    finally:
        numba.set_num_threads(before)


def is_forked():
    """Return whether this process is the fork of another.

    The threads of the other are not here, and OpenMP would wait for them.
    """
    return _is_forked


def threading_layer():
    """Start Numba's layer of threads; return "tbb", "omp" or "workqueue"."""
    import numba

    # Read once, when OpenMP is loaded. By default its threads spin while they
    # wait, beside those of the framework, which costs milliseconds a call where
    # cores are busy.
    missing = "OMP_WAIT_POLICY" not in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        # Numba sets OpenMP's number of threads, of the thread it starts from.
        # In this one, PyTorch would lose its limit.
        with ThreadPoolExecutor(1) as other:
            other.submit(numba.get_num_threads).result()
    finally:
        if missing:
            del os.environ["OMP_WAIT_POLICY"]
    return numba.threading_layer()


def _mark_forked():
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)
