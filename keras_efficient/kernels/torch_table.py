"""Steps of many tensors of PyTorch, in one call of a kernel.

Such a kernel takes a table with a row for each parameter, the addresses of its
tensors and some numbers, and empty tensors that tell the dtype of each column
and the device.
"""

from collections import namedtuple

import torch

from keras_efficient.kernels import policy

# tensors: the parameter, its state, and its gradient; all but the gradient are
#   overwritten.
# shapes: what they must be.
# numbers: tuple of integers, for the table.
# layout: tuple of what is the same for all parameters of a call.
Row = namedtuple("Row", ("tensors", "shapes", "numbers", "layout"))


# Dynamo would trace into `data_ptr()`.
@torch.compiler.disable
def step_many(rows, dtypes, find_kernel, *args):
    """Do the steps of those rows that a kernel serves.

    All rows are checked before the first one is changed.

    Args:
        rows: List of `Row`.
        dtypes: Dict from the name of each tensor of a row to the names of the
            dtypes it may have.
        find_kernel: Function that returns, for "numba" or "triton" and a
            layout, the kernel or `None`. It is called with the table, the
            empty tensors, and `args`.
        *args: See `find_kernel`.

    Returns:
        List of booleans, whether each row has been served.
    """
    calls = []
    for (device, types, layout), indices in _groups(rows, dtypes).items():
        name = policy.choose_for("torch", device.type)
        kernel = name and find_kernel(name, layout)
        if kernel:
            _check_dtypes(types, dtypes)
            for i in indices:
                _check(rows[i], dtypes, device)
            calls.append((kernel, indices))
    served = [False] * len(rows)
    for kernel, indices in calls:
        _call(kernel, [rows[i] for i in indices], args)
        for i in indices:
            served[i] = True
    return served


def _groups(rows, dtypes):
    """Divide the indices of rows by device, dtypes and layout."""
    first, *_, last = (
        [getattr(torch, name) for name in names] for names in dtypes.values()
    )
    groups = {}
    for i, (tensors, _, _, layout) in enumerate(rows):
        types = tuple([x.dtype for x in tensors])
        if types[0] not in first or types[-1] not in last:
            continue
        if not all([x.is_contiguous() for x in tensors[:-1]]):
            continue
        key = tensors[0].device, types, layout
        groups.setdefault(key, []).append(i)
    return groups


def _check_dtypes(types, dtypes):
    for found, (name, allowed) in zip(types, dtypes.items()):
        if str(found).removeprefix("torch.") not in allowed:
            raise TypeError(
                f"'{name}' must have dtype {' or '.join(allowed)}. "
                f"Received: {found}"
            )


def _check(row, names, device):
    """Raise an error where a kernel would leave the memory of a tensor."""
    found = tuple([x.shape for x in row.tensors])
    if found == row.shapes and all([x.device == device for x in row.tensors]):
        return
    for x, shape, name in zip(row.tensors, row.shapes, names):
        if x.shape != shape or x.device != device:
            raise ValueError(
                f"'{name}' must have shape {tuple(shape)} and be on "
                f"'{device}', as its parameter. Received: shape "
                f"{tuple(x.shape)} on '{x.device}'"
            )


def _call(kernel, rows, args):
    # A copy has to live as long as the kernel works on it.
    gradients = [row.tensors[-1].detach().contiguous() for row in rows]
    table = [
        [*[x.data_ptr() for x in row.tensors[:-1]], g.data_ptr(), *row.numbers]
        for row, g in zip(rows, gradients)
    ]
    likes = [
        torch.empty(0, dtype=x.dtype, device=x.device) for x in rows[0].tensors
    ]
    kernel(table, likes, *args)
    # So that autograd notices, as after an operation of its own.
    torch.autograd.graph.increment_version(
        [x for row in rows for x in row.tensors[:-1]]
    )
