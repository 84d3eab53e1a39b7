"""The largest entries of a block, as `keras_efficient.ops.block_top_k`.

Among equals the first one is taken. XLA does the same; other frameworks may
take any of them.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from keras_efficient.kernels.numba_group import to_bits
from keras_efficient.kernels.numba_vectors import LENGTH

_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, LENGTH)
_LAST = 2**16 - 1


@numba.njit(error_model="numpy", nogil=True, cache=True)
def find_largest(work, start, size, k, places, magnitudes):
    """Write the places of the `k` largest entries, the largest first.

    One after another is taken from the group of 32 that has the largest
    entry. There is no branch that a processor would have to guess.

    Args:
        work: float32 array, in which 31 entries can be read behind the block.
        start: Where the block begins.
        size: Number of entries, at most 2^15.
        k: From 1 to `size`.
        places: int64 array for the result, with room for `2 * size + 1`.
        magnitudes: int32 array of `size + 31` entries to work on.
    """
    groups = (size + LENGTH - 1) // LENGTH
    for i in range(size):
        magnitudes[i] = to_bits(work[start + i]) & np.int32(0x7FFFFFFF)
    magnitudes[size : groups * LENGTH] = -1
    # As many steps as sorting takes
    if k * (groups + 64) > 16 * size:
        _sort(size, k, places, magnitudes)
        return
    keys = places[k : k + groups]
    for group in range(groups):
        keys[group] = _key(_largest(magnitudes, group * LENGTH), group)
    for i in range(k):
        key = keys[0]
        for group in range(1, groups):
            key = max(key, keys[group])
        group = _LAST - (key & _LAST)
        at = group * LENGTH
        place = at + _first(magnitudes, at, np.int32(key >> 16))
        places[i] = place
        magnitudes[place] = -1
        keys[group] = _key(_largest(magnitudes, at), group)


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _sort(size, k, places, magnitudes):
    for i in range(size):
        places[i] = -_key(magnitudes[i], i)
    places[:size].sort()
    for i in range(k):
        places[i] = _LAST - (-places[i] & _LAST)


@numba.njit(cache=True)
def _key(magnitude, place):
    """Order by magnitude, and by place among equals."""
    return (np.int64(magnitude) << 16) | np.int64(_LAST - place)


@intrinsic
def _largest(typingctx, array, at):
    """Return the largest of the 32 entries from `array[at]` on."""

    def codegen(context, builder, signature, args):
        entries = _load(context, builder, signature, args)
        largest = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_INT, [_INTS]),
            f"llvm.vector.reduce.smax.v{LENGTH}i32",
        )
        return builder.call(largest, [entries])

    return types.int32(array, types.int64), codegen


@intrinsic
def _first(typingctx, array, at, value):
    """Return which of the 32 entries from `array[at]` on is `value`."""

    def codegen(context, builder, signature, args):
        entries = _load(context, builder, signature, args)
        undefined = ir.Constant(_INTS, ir.Undefined)
        wanted = builder.insert_element(undefined, args[2], _INT(0))
        zeros = ir.Constant(_INTS, [0] * LENGTH)
        wanted = builder.shuffle_vector(wanted, undefined, zeros)
        found = builder.icmp_signed("==", entries, wanted)
        first = builder.cttz(builder.bitcast(found, _INT), cgutils.true_bit)
        return builder.zext(first, ir.IntType(64))

    return types.int64(array, types.int64, types.int32), codegen


def _load(context, builder, signature, args):
    array = arrayobj.make_array(signature.args[0])(context, builder, args[0])
    pointer = builder.gep(array.data, [args[1]])
    pointer = builder.bitcast(pointer, _INTS.as_pointer())
    return builder.load(pointer, align=4)
