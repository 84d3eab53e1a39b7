import ctypes
import gc
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes(function):
    """Measure how much more memory there is at the peak of a call than before.

    On a GPU that PyTorch or TensorFlow uses, its allocator is asked. Elsewhere
    the operating system is, for the memory of the process (Linux only), and
    counts to about half a MB. What was held before does not count, nor does
    what an earlier call made the process keep: freed memory is given back
    first.

    Three things make such a figure wrong:

    - A small step may fit into what the allocator holds back all the same.
      Start the process with the environment variable
      `MALLOC_MMAP_THRESHOLD_=131072`. Take times in another process: with it
      memory comes anew from the system, and steps are slower.
    - What is called for the first time is traced and compiled, which takes
      memory too. Call it once before.
    - TensorFlow's oneDNN keeps what it has freed, out of reach, unless the
      environment variable `TF_ONEDNN_USE_SYSTEM_ALLOCATOR` is `1` before it is
      loaded.

    Args:
        function: Function without arguments. What it returns is dropped.

    Returns:
        Integer, bytes; `None` where nobody can be asked: not on Linux, or on
        a GPU by JAX.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = keras.random.normal((32, 64)), keras.random.normal((32, 1))
    step = lambda: model.train_on_batch(x, y)
    step()
    print(keras_efficient.utils.peak_bytes(step))
    ```
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        return _on_cuda_with_torch(torch.cuda, function)
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow and tensorflow.config.list_logical_devices("GPU"):
        return _on_gpu_with_tensorflow(tensorflow, function)
    jax = sys.modules.get("jax")
    if not _STATUS.exists() or (jax and jax.default_backend() != "cpu"):
        function()
        return None
    # What was freed goes back to the system, so that its use counts again.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident_bytes("VmRSS")
    function()
    return max(0, _resident_bytes("VmHWM") - before)


def _on_cuda_with_torch(cuda, function):
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    function()
    cuda.synchronize()
    return cuda.max_memory_allocated() - before


def _on_gpu_with_tensorflow(tensorflow, function):
    memory = tensorflow.config.experimental
    memory.reset_memory_stats("GPU:0")
    before = memory.get_memory_info("GPU:0")["current"]
    function()
    return memory.get_memory_info("GPU:0")["peak"] - before


def _resident_bytes(key):
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
