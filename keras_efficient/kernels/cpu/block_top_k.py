"""The largest entries of a block, as `keras_efficient.ops.block_top_k`.

Among equals the first one is taken. XLA does the same; other frameworks may
take any of them.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.vectors import LENGTH
from keras_efficient.kernels.cpu.vectors import Run

_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, LENGTH)
_LAST = 2**16 - 1


@jit
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
    for group in range(groups):
        at = group * LENGTH
        largest = _magnitudes(work, start + at, magnitudes, at)
        places[k + group] = _key(largest, group)
    if size < groups * LENGTH:
        for i in range(size, groups * LENGTH):
            magnitudes[i] = -1
        at = (groups - 1) * LENGTH
        places[k + groups - 1] = _key(_largest(magnitudes, at), groups - 1)
    # As many steps as sorting takes
    if k * (groups + 64) > 16 * size:
        _sort(size, k, places, magnitudes)
        return
    for i in range(k):
        key = places[k]
        for group in range(1, groups):
            key = max(key, places[k + group])
        group = _LAST - (key & _LAST)
        at = group * LENGTH
        places[i] = at + _take_first(magnitudes, at, np.int32(key >> 16))
        places[k + group] = _key(_largest(magnitudes, at), group)


@jit
def _sort(size, k, places, magnitudes):
    for i in range(size):
        places[i] = -_key(magnitudes[i], i)
    places[:size].sort()
    for i in range(k):
        places[i] = _LAST - (-places[i] & _LAST)


@jit
def _key(magnitude, place):
    """Order by magnitude, and by place among equals."""
    return (np.int64(magnitude) << 16) | np.int64(_LAST - place)


@intrinsic
def _magnitudes(typingctx, work, start, array, at):
    """Write 32 entries of `work` without signs, and return the largest."""

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        # Without the sign, bits are in the order of the numbers.
        mask = ir.Constant(_INTS, [0x7FFFFFFF] * LENGTH)
        entries = builder.and_(run.load(0, 1, _INTS), mask)
        run.store(2, 3, entries)
        return _reduce(builder, entries)

    return types.int32(work, types.int64, array, types.int64), codegen


@intrinsic
def _largest(typingctx, array, at):
    """Return the largest of the 32 entries from `array[at]` on."""

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        return _reduce(builder, run.load(0, 1, _INTS))

    return types.int32(array, types.int64), codegen


def _reduce(builder, entries):
    largest = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(_INT, [_INTS]),
        f"llvm.vector.reduce.smax.v{LENGTH}i32",
    )
    return builder.call(largest, [entries])


@intrinsic
def _take_first(typingctx, array, at, value):
    """Return which of 32 entries is `value`, and make that -1.

    All are written, not one: processors wait before they read many entries of
    which one has just been written.
    """

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        entries = run.load(0, 1, _INTS)
        found = builder.icmp_signed("==", entries, run.splat(2, _INTS))
        found = builder.bitcast(found, _INT)
        first = builder.and_(found, builder.neg(found))
        first = builder.bitcast(first, ir.VectorType(ir.IntType(1), LENGTH))
        taken = ir.Constant(_INTS, [-1] * LENGTH)
        run.store(0, 1, builder.select(first, taken, entries))
        place = builder.cttz(found, cgutils.true_bit)
        return builder.zext(place, ir.IntType(64))

    return types.int64(array, types.int64, types.int32), codegen
