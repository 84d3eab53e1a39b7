"""Say something from inside of an XLA program, by a Python function.

A handler of the XLA FFI as those of `xla_handler`, but without Numba: where a
condition holds, XLA calls Python. It costs nothing where the condition does not
hold, unlike the callbacks of JAX, which also slow down the start of a program
by milliseconds; and TensorFlow has none inside of XLA.
"""

import ctypes
import warnings
import zlib

import numpy as np

from keras_efficient.kernels.ffi import tensors
from keras_efficient.kernels.ffi import xla_version
from keras_efficient.kernels.ffi.tensors import Spec

# Where a word of 8 bytes stands in its structure, as in `xla_handler`.
_FRAME_EXTENSION, _FRAME_API, _FRAME_ARGS, _FRAME_RESULTS = 1, 2, 9, 14
_BUFFER_DATA = 3
_TYPE, _NEXT, _METADATA, _METADATA_VERSION = 1, 2, 3, 3
_API_VERSION = 4
_IS_METADATA = 1

_messages = {}


def can_report(tensor):
    """Whether `report` works where `tensor` is computed."""
    framework = tensors.framework_of([tensor])
    return (
        framework in ("jax", "tensorflow")
        and tensors.device_of([tensor], framework) == "cpu"
        and xla_version.why_not(framework) is None
    )


def report(failed, message):
    """Warn with `message` if the boolean tensor `failed` holds at run time.

    Returns:
        A float32 tensor, zero. The warning is given when it is computed, and
        if nobody needs it, it is not.
    """
    # Not a running number: compiled programs are kept over processes.
    code = np.int32(zlib.crc32(message.encode()) >> 1)
    _messages[int(code)] = message
    host = _host(tensors.framework_of([failed]))
    specs = [Spec((), "bool"), Spec((), "int32")]
    values = [host.as_tensor(failed, "failed"), host.as_tensor(code, "code")]
    return host.run(_Report, values, specs, [Spec((), "float32")])[0]


class _Report:
    """What `Host.run` asks of a kernel."""

    name = "keras_efficient_report"
    aliases = {}

    @staticmethod
    def handler(specs, results, framework):
        return _handle, _Report.name


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def _handle(frame):
    """Warn, or tell XLA which version of its interface this is written for."""
    extension = _word(frame, _FRAME_EXTENSION)
    while extension:
        if _word(extension, _TYPE) & 0xFFFFFFFF == _IS_METADATA:
            version = _word(_word(frame, _FRAME_API), _API_VERSION)
            metadata = _word(extension, _METADATA)
            _words(metadata)[_METADATA_VERSION] = version
            return 0
        extension = _word(extension, _NEXT)
    failed, code = (
        _word(_word(_word(frame, _FRAME_ARGS), i), _BUFFER_DATA) for i in (0, 1)
    )
    result = _word(_word(_word(frame, _FRAME_RESULTS), 0), _BUFFER_DATA)
    ctypes.c_float.from_address(result).value = 0.0
    # In `jax.vmap` both sides of a condition are computed.
    if ctypes.c_bool.from_address(failed).value:
        code = ctypes.c_int32.from_address(code).value
        warnings.warn(_messages[code], stacklevel=1)
    return 0


_handle.address = ctypes.cast(_handle, ctypes.c_void_p).value


def _words(address):
    return (ctypes.c_uint64 * 16).from_address(address)


def _word(address, index):
    return _words(address)[index]


def _host(framework):
    if framework == "jax":
        from keras_efficient.kernels.ffi.jax import call
    else:
        from keras_efficient.kernels.ffi.tensorflow import call
    return call
