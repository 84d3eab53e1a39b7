"""One launch over many tensors: what its programs find them by.

A table on the device has a row for each tensor: the addresses of its arrays
and numbers of its own, the last of which is its first program. Another array
tells the row of each program.
"""

import functools

import numpy as np
import torch
import triton
import triton.language as tl

_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.uint8: tl.uint8,
    torch.int16: tl.int16,
}


@triton.jit
def pointer(row, column, dtype: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return a pointer from a row of a table."""
    address = tl.load(row + column).to(tl.pointer_type(dtype))
    # Without this, no load is of more than one entry.
    return tl.multiple_of(address, ALIGNMENT)


def place(table, counts, like):
    """Bring a table to the device of a tensor.

    Args:
        table: int64 array.
        counts: int64 array, the number of programs of each row.
        like: Tensor.

    Returns:
        The table with one more column, that of the first programs, and the
        rows of the programs, an int32 tensor.
    """
    first = np.cumsum(counts) - counts
    table = torch.from_numpy(np.column_stack([table, first]))
    if like.is_cuda:
        # From memory that does not move, nobody waits for the copy.
        table = table.pin_memory().to(like.device, non_blocking=True)
    return table, _rows_of_programs(tuple(counts.tolist()), like.device)


# They stay the same from step to step; addresses of gradients do not.
@functools.lru_cache(maxsize=16)
def _rows_of_programs(counts, device):
    rows = np.repeat(np.arange(len(counts), dtype="int32"), counts)
    return torch.from_numpy(rows).to(device)


def alignment_of(addresses):
    """Return a number of bytes that divides all addresses, at most 16."""
    return int(np.gcd.reduce(addresses, axis=None, initial=16))


def dtype_of(tensor):
    """Return Triton's name of the dtype of a tensor."""
    return _DTYPES[tensor.dtype]
