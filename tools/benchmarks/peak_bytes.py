"""How much memory a function takes on top of what is held before it."""

import ctypes
import gc
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def extra_bytes(function, device):
    """Call a function and return the bytes at the peak, less those before.

    Args:
        function: Function without arguments, which has been called before, so
            that nothing is compiled.
        device: "cpu" or "cuda".

    Returns:
        Integer, or `None` where it cannot be known.
    """
    gc.collect()
    if device == "cuda":
        return _extra_bytes_of_cuda(function)
    if not STATUS.exists():
        function()
        return None
    # What was freed goes back to the system, so that its use counts again.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident_bytes("VmRSS")
    function()
    return max(0, _resident_bytes("VmHWM") - before)


def _extra_bytes_of_cuda(function):
    torch = sys.modules.get("torch")
    tensorflow = sys.modules.get("tensorflow")
    if torch and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if tensorflow and tensorflow.config.list_physical_devices("GPU"):
        memory = tensorflow.config.experimental
        memory.reset_memory_stats("GPU:0")
        before = memory.get_memory_info("GPU:0")["current"]
        function()
        return memory.get_memory_info("GPU:0")["peak"] - before
    function()
    return None


def _resident_bytes(key):
    for line in STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
