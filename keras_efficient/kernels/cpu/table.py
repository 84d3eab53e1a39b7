"""What kernels for many tensors share: tables of addresses, work in parts.

A table is an int64 array with a row for each tensor: the addresses of its
arrays, numbers of its own, and at the end the number of parts that its work is
divided into, and where these end among those of all tensors. Threads take one
part after another, so that none waits for one that the system has stopped.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.ffi import threads

_WORD = ir.IntType(64)


def add_parts(columns, sizes, entries):
    """Return a table with its last two columns, as an int64 array.

    Args:
        columns: List of arrays or lists of integers, which it begins with.
        sizes: int64 array, the number of entries of each tensor.
        entries: How many of them make a part.
    """
    parts = np.maximum(1, sizes // entries)
    return np.column_stack([*columns, parts, np.cumsum(parts)])


def count_threads(sizes, entries):
    """Return how many threads are worth waking."""
    return min(int(np.sum(sizes)) // entries, threads.limit("torch"))


@jit
def take_part(taken, table, tensor):
    """Take the next part of the work.

    Args:
        taken: int64 array of one entry: how many parts have been taken.
        table: What `add_parts` returned.
        tensor: Row of the part that this thread took before; 0 at first.

    Returns:
        The row, that after the last one where nothing is left; which part of
        that tensor; and how many it has.
    """
    part = _increment(taken)
    while tensor < table.shape[0] and part >= table[tensor, -1]:
        tensor += 1
    if tensor == table.shape[0]:
        return tensor, 0, 1
    parts = table[tensor, -2]
    return tensor, part - (table[tensor, -1] - parts), parts


@jit
def array_at(address, shape, like):
    """Return the array at an address, of the dtype of the array `like`."""
    return numba.carray(_pointer(address, like), shape)


@jit
def correction_at(address, size, like):
    """Return the array at an address, an empty one at 0."""
    return array_at(address, size if address else 0, like)


@intrinsic
def _increment(typingctx, array):
    """Add 1 to what other threads add to, too; return what it was."""

    def codegen(context, builder, signature, args):
        array = arrayobj.make_array(signature.args[0])
        data = array(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, _WORD(1), "monotonic")

    return types.int64(array), codegen


@intrinsic
def _pointer(typingctx, address, like):
    def codegen(context, builder, signature, args):
        item = context.get_data_type(signature.return_type.dtype)
        return builder.inttoptr(args[0], item.as_pointer())

    return types.CPointer(like.dtype)(types.int64, like), codegen
