"""Tensors of PyTorch as addresses, for kernels that work on many of them."""

import numpy as np
import torch

from keras_efficient.kernels.ffi.tensors import why_not_plain


class TensorTable:
    """The addresses of rows of tensors, for one call of a kernel.

    Not for code that Dynamo traces, which has no addresses.

    Attributes:
        addresses: int64 array with a row for each row, and a column for each
            tensor of it.
        likes: List of empty tensors, which tell the dtype of each column, and
            the device.

    Args:
        rows: Not empty list of tuples of tensors, with the same dtypes and on
            the same device. All but the last one of each are contiguous and
            will be overwritten. Of the last one a copy is made where it is
            not contiguous.
    """

    def __init__(self, rows):
        for x in [x for row in rows for x in row]:
            if why_not_plain(x):
                raise TypeError(f"Kernels need memory: {why_not_plain(x)}.")
        self._written = [x for row in rows for x in row[:-1]]
        # A copy has to live as long as the kernel works on it.
        self._read = [row[-1].detach().contiguous() for row in rows]
        self.addresses = np.array(
            [
                [x.data_ptr() for x in (*row[:-1], last)]
                for row, last in zip(rows, self._read)
            ],
            "int64",
        )
        self.likes = [
            torch.empty(0, dtype=x.dtype, device=x.device) for x in rows[0]
        ]

    def mark_written(self):
        """Let autograd notice, as after an operation of its own."""
        torch.autograd.graph.increment_version(self._written)


def weight_columns(addresses, rows):
    """Return what the table has of corrections and decays.

    Args:
        addresses: What `TensorTable` has, int64.
        rows: List of `keras_efficient.ops.dispatch.Row`.

    Returns:
        The addresses with a second column, 0 where there is no correction,
        and the bits of the decays in float32.
    """
    if rows[0].correction is None:
        addresses = np.insert(addresses, 1, 0, axis=1)
    decays = np.array([row.decay for row in rows], "float32")
    return addresses, decays.view("int32").astype("int64")
