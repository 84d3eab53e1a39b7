"""The largest entries of a block, as `keras_efficient.ops.block_top_k`.

Entries are ordered by a key, their magnitude and then their place, so that
among equals the first one wins. XLA does the same; other frameworks may take
any of them.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from keras_efficient.kernels.numba_group import GROUP_SIZE
from keras_efficient.kernels.numba_group import largest_of_group
from keras_efficient.kernels.numba_group import to_bits

# More entries than this are sorted; fewer are kept in order one by one.
MOST_IN_ORDER = 64

_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, GROUP_SIZE)
_PLACES = 2**16 - 1


@intrinsic
def _entries_from(typingctx, array, group, least):
    """Set a bit for each entry of a group whose magnitude has bits >= least."""

    def codegen(context, builder, signature, args):
        data = arrayobj.make_array(array)(context, builder, args[0]).data
        data = builder.bitcast(data, _INTS.as_pointer())
        entries = builder.load(builder.gep(data, [args[1]]), align=4)
        mask = ir.Constant(_INTS, [0x7FFFFFFF] * GROUP_SIZE)
        entries = builder.and_(entries, mask)
        undefined = ir.Constant(_INTS, ir.Undefined)
        bound = builder.insert_element(undefined, args[2], _INT(0))
        zeros = ir.Constant(_INTS, [0] * GROUP_SIZE)
        bound = builder.shuffle_vector(bound, undefined, zeros)
        return builder.bitcast(builder.icmp_signed(">=", entries, bound), _INT)

    return types.uint32(array, types.int64, types.int32), codegen


@intrinsic
def _lowest_bit(typingctx, bits):
    """Return the place of the lowest bit of a uint32 that is not 0."""

    def codegen(context, builder, signature, args):
        count = builder.cttz(args[0], cgutils.true_bit)
        return builder.zext(count, ir.IntType(64))

    return types.int64(types.uint32), codegen


@numba.njit(error_model="numpy", nogil=True, cache=True)
def find_largest(work, start, size, k, keys):
    """Put the keys of the `k` largest entries in order, the largest first.

    Args:
        work: float32 array. The block is followed by zeros up to a multiple
            of 32.
        start: Where the block begins, a multiple of 32.
        size: Number of entries, at most 2^15.
        k: From 1 to `size`.
        keys: int64 array for `size + 32` keys, of which `place_of` reads the
            places in the block.
    """
    first = start // GROUP_SIZE
    groups = (size + GROUP_SIZE - 1) // GROUP_SIZE
    least = np.int32(0)
    if k <= groups:
        # k groups reach this, so that no entry below is among the k largest.
        count = 0
        for group in range(groups):
            bits = to_bits(largest_of_group(work, first + group))
            count = _keep(keys, count, k, np.int64(bits))
        _sort(keys, count, k)
        least = np.int32(keys[k - 1])
    count = 0
    for group in range(groups):
        found = _entries_from(work, first + group, least)
        while found:
            place = group * GROUP_SIZE + _lowest_bit(found)
            found = np.uint32(found & np.uint32(found - np.uint32(1)))
            bits = to_bits(work[start + place]) & np.int32(0x7FFFFFFF)
            key = (np.int64(bits) << 16) | np.int64(_PLACES - place)
            count = _keep(keys, count, k, key)
    _sort(keys, count, k)


@numba.njit(cache=True)
def place_of(key):
    return np.int64(_PLACES - (key & np.int64(_PLACES)))


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _keep(keys, count, k, key):
    """Add a key; return how many there are."""
    if k > MOST_IN_ORDER:
        keys[count] = key
        return count + 1
    if count == k:
        if key <= keys[k - 1]:
            return count
        count -= 1
    at = count
    while at > 0 and keys[at - 1] < key:
        keys[at] = keys[at - 1]
        at -= 1
    keys[at] = key
    return count + 1


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _sort(keys, count, k):
    if k <= MOST_IN_ORDER:
        return
    found = keys[:count]
    for i in range(count):
        found[i] = -found[i]
    found.sort()
    for i in range(k):
        found[i] = -found[i]
