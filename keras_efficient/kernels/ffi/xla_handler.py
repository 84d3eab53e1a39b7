"""Numba kernels as handlers of the typed XLA FFI.

XLA calls a handler with the address of an `XLA_FFI_CallFrame`, whose layout is
in the header `xla/ffi/api/c_api.h`, and takes 0 for success or the address of
an error. Everything in the frame is read as words of 8 bytes.

Reference:
    - [XLA FFI](https://openxla.org/xla/custom_call)
"""

import ctypes

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from keras_efficient.kernels.ffi import threads
from keras_efficient.kernels.ffi.xla_version import TESTED

# Where a word stands in its structure.
FRAME_EXTENSION, FRAME_API, FRAME_ARGS, FRAME_RESULTS = 1, 2, 9, 14
BUFFER_DATA, BUFFER_DIMS = 3, 5
EXTENSION_TYPE, EXTENSION_NEXT, EXTENSION_METADATA = 1, 2, 3
METADATA_VERSION = 3  # both numbers in one word, as in the API's table
API_VERSION, API_CREATE_ERROR = 4, 6

METADATA = 1  # type of the extension
ERROR_SIZE, INTERNAL, UNIMPLEMENTED = 28, 13, 12
WORD = ir.IntType(64)

_VERSIONS = tuple(major | minor << 32 for major, minor in TESTED)


@intrinsic
def load(typingctx, address, index):
    """Read the word at `address + 8 * index`."""

    def codegen(context, builder, signature, args):
        return builder.load(_word(builder, *args))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def store(typingctx, address, index, value):
    """Write the word at `address + 8 * index`."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _word(builder, *args[:2]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def call(typingctx, function, argument):
    """Call a C function by its address, with one word for one word."""

    def codegen(context, builder, signature, args):
        pointer = ir.FunctionType(WORD, [WORD]).as_pointer()
        return builder.call(builder.inttoptr(args[0], pointer), [args[1]])

    return types.int64(types.int64, types.int64), codegen


@numba.njit
def create_error(api, message, code):
    """Make an error; XLA destroys it."""
    words = np.empty(4, np.int64)
    words[0], words[1], words[2], words[3] = ERROR_SIZE, 0, message, code
    return call(load(api, API_CREATE_ERROR), words.ctypes.data)


@numba.njit
def find_metadata(frame):
    """Return where XLA wants the handler's version, or 0 in a true call."""
    extension = load(frame, FRAME_EXTENSION)
    while extension != 0:
        if load(extension, EXTENSION_TYPE) & 0xFFFFFFFF == METADATA:
            return load(extension, EXTENSION_METADATA)
        extension = load(extension, EXTENSION_NEXT)
    return 0


@numba.njit
def lower_threads(limit):
    """Keep to the limit at an address; return the number there was."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(before, load(limit, 0)))
    return before


@numba.njit
def restore_threads(before):
    numba.set_num_threads(before)


@numba.njit
def do_nothing(x):
    return x


def compile_handler(kernel, parameters, in_place, name, is_parallel):
    """Compile a handler that calls a kernel on the buffers of a frame.

    Args:
        kernel: Dispatcher of Numba.
        parameters: List with `(spec, is_result, index)` for each parameter of
            the kernel: the `Spec` of the tensor, with a dtype that Numba has,
            and where it stands among the results or the arguments of the call.
        in_place: Dict from the index of a result to that of the argument it
            overwrites.
        name: String for error messages.
        is_parallel: Whether the kernel takes several threads.

    Returns:
        The compiled function. Its `address` must not be used after its end.
    """
    buffers = _unpack(parameters, in_place)
    failed, untested = (
        ctypes.create_string_buffer(text.encode())
        for text in (
            f"The Numba kernel '{name}' raised an exception",
            f"The Numba kernel '{name}' was not tested with this version of "
            "the XLA FFI",
        )
    )
    failed_at, untested_at = map(ctypes.addressof, (failed, untested))
    versions = _VERSIONS
    limit = threads.LIMIT_OF_HANDLERS
    lower, restore = do_nothing, do_nothing
    if is_parallel:
        lower, restore = lower_threads, restore_threads

    def handler(frame):
        api = load(frame, FRAME_API)
        metadata = find_metadata(frame)
        if metadata != 0:
            version = load(api, API_VERSION)
            if version not in versions:
                return create_error(api, untested_at, UNIMPLEMENTED)
            store(metadata, METADATA_VERSION, version)
            return 0
        before = lower(limit)
        failed = False
        try:
            kernel(*buffers(frame))
        # What it was is not known to compiled code.
        except Exception:
            failed = True
        restore(before)
        return create_error(api, failed_at, INTERNAL) if failed else 0

    compiled = numba.cfunc(types.int64(types.int64))(handler)
    compiled.messages = failed, untested  # live as long as the code
    return compiled


def _word(builder, address, index):
    pointer = builder.inttoptr(address, WORD.as_pointer())
    return builder.gep(pointer, [index])


def _unpack(parameters, in_place):
    """Make an intrinsic from a frame to the tuple of its arrays."""

    @intrinsic
    def unpack(typingctx, frame):
        result = types.Tuple([array_type(spec) for spec, *_ in parameters])

        def codegen(context, builder, signature, args):
            def read(address, index):
                return builder.load(_word(builder, address, WORD(index)))

            sources = [read(args[0], FRAME_ARGS), read(args[0], FRAME_RESULTS)]
            arrays = []
            for spec, is_result, index in parameters:
                buffer = read(sources[is_result], index)
                array = _array(context, builder, spec, buffer, read)
                if is_result and index in in_place:
                    other = read(sources[0], in_place[index])
                    _copy_unless_same(builder, array, read(other, BUFFER_DATA))
                arrays.append(array._getvalue())
            return context.make_tuple(builder, result, arrays)

        return result(types.int64), codegen

    return unpack


def array_type(spec):
    """Return Numba's type of the array that a kernel gets."""
    # Compiled loops cannot read from arrays without an axis.
    ndim = max(1, len(spec.shape))
    return types.Array(numba.from_dtype(np.dtype(spec.dtype)), ndim, "C")


def _array(context, builder, spec, buffer, read):
    kind = array_type(spec)
    item = context.get_data_type(kind.dtype)
    size = WORD(context.get_abi_sizeof(item))
    dims = read(buffer, BUFFER_DIMS)
    shape = [read(dims, axis) for axis in range(len(spec.shape))]
    shape = shape or [WORD(1)]
    strides, stride = [], size
    for length in reversed(shape):
        strides.insert(0, stride)
        stride = builder.mul(stride, length)
    array = arrayobj.make_array(kind)(context, builder)
    data = builder.inttoptr(read(buffer, BUFFER_DATA), item.as_pointer())
    arrayobj.populate_array(array, data, shape, strides, size, None)
    return array


def _copy_unless_same(builder, array, source):
    """XLA promises one buffer for both; the result is right without it too."""
    target = builder.ptrtoint(array.data, WORD)
    with builder.if_then(builder.icmp_unsigned("!=", target, source)):
        source = builder.inttoptr(source, array.data.type)
        cgutils.raw_memcpy(
            builder, array.data, source, array.nitems, array.itemsize
        )
