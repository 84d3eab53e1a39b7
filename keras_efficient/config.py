"""Switches of the package, as `keras.config` has those of Keras."""

import sys

import keras

from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import support
from keras_efficient.kernels.ffi import threads

_ROWS = [
    (framework, device)
    for framework in ("jax", "tensorflow", "torch")
    for device in ("cpu", "cuda")
]


def set_kernels(kernels):
    """Choose the kernels that optimizers and operations run on.

    Kernels and the portable form have the same variables and the same results,
    up to the last digits of float32; only time and memory differ. What a
    framework has compiled by then keeps what it was compiled with: choose
    before the first training step.

    Args:
        kernels: String. `"auto"`: the fastest that can run, silently the
            portable form where none can. `"off"`: always the portable form.
            `"numba"` and `"triton"`: this one, or an error that says why not,
            here or at the first use. The environment variable
            `KERAS_EFFICIENT_KERNELS` takes the same values and counts until
            this function is called. Without both it is `"auto"`.

    Raises:
        ValueError: if `kernels` is none of these.
        RuntimeError: if the package behind the kernel cannot be used.

    Example:

    ```python
    keras_efficient.config.set_kernels("off")
    ```
    """
    policy.set_kernels(kernels)


def kernels():
    """Return what `set_kernels` or `KERAS_EFFICIENT_KERNELS` chose.

    Returns:
        String: `"auto"`, `"off"`, `"numba"` or `"triton"`.

    Raises:
        ValueError: if the environment variable has another value.
    """
    return policy.kernels()


def set_num_threads(number):
    """Set how many threads kernels on the CPU use at most.

    By default kernels keep to the limit of their framework: that of
    `torch.set_num_threads`, of TensorFlow's intra-op parallelism, of the
    environment variable `OMP_NUM_THREADS`; on all backends to that of
    `NUMBA_NUM_THREADS` and of `numba.set_num_threads`. No limit of a framework
    is changed. Compiled programs keep to the new number, too.

    Args:
        number: Positive integer, which takes the place of the limit of the
            framework, for kernels only; `None` gives it back.

    Raises:
        ValueError: if `number` is neither.

    Example:

    ```python
    keras_efficient.config.set_num_threads(2)
    ```
    """
    threads.set_num_threads(number)


def num_threads():
    """Return what `set_num_threads` chose, or `None`.

    Returns:
        Integer, or `None` where kernels keep to the limit of the framework.
    """
    return threads.num_threads()


def report(verbose=1):
    """Print which kernel serves which device, and why not where there is none.

    A small kernel of Numba is compiled and run, to know whether it can be.
    No framework is imported for it. Whether there is a CUDA device is only
    known in a process that has imported PyTorch.

    Args:
        verbose: `0` or `1`. Whether to print. Defaults to `1`.

    Returns:
        List of dicts with the strings `framework`, `device`, `kernel`
        (`"numba"`, `"triton"` or `"portable"`) and `reason`: why there is
        no kernel, what it does without, such as a cache, or that it works on
        shards, under `keras.distribution`; else empty.

    Raises:
        ValueError: if `KERAS_EFFICIENT_KERNELS` has an unknown value.

    Example:

    ```python
    rows = keras_efficient.config.report()
    ```
    """
    rows = [_row(*names) for names in _ROWS]
    if not verbose:
        return rows
    title = f"kernels: {kernels()}"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # Keras depends on it, but could stop to
        print(title)
        for row in rows:
            print("  ".join(row.values()))
        return rows
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    return rows


def _row(framework, device):
    kernel, reason = None, None
    if kernels() == "off":
        reason = "kernels are off"
    elif device == "cuda" and not _may_have_cuda():
        reason = "no CUDA device here"
    else:
        wanted = policy.wanted(framework, device)
        reason = policy.why_not(wanted, framework, device)
        kernel = None if reason else wanted
        if kernel == "numba":
            remarks = support.remark(), _remark_on_shards(framework)
            reason = "; ".join(filter(None, remarks))
    return {
        "framework": framework,
        "device": device,
        "kernel": kernel or "portable",
        "reason": reason or "",
    }


def _remark_on_shards(framework):
    distribution = keras.distribution.distribution()
    if framework != "jax" or distribution is None:
        return None
    devices = distribution.device_mesh.devices.size
    return f"on the shards of {devices} devices, by jax.shard_map"


def _may_have_cuda():
    torch = sys.modules.get("torch")
    return torch is None or torch.cuda.is_available()
