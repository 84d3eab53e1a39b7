"""Tensors of PyTorch as arrays that files hold, without wider copies."""

import ml_dtypes
import numpy as np
import torch


def as_array(value):
    """Return a bfloat16 tensor as an array of the same bytes; else `value`."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return value
    if value.dtype != torch.bfloat16:
        return value
    # NumPy has no bfloat16 of its own: the bits are handed over as integers.
    bits = value.detach().cpu().contiguous().view(torch.int16)
    return bits.numpy().view(ml_dtypes.bfloat16)


def as_tensor(array):
    """Return an array of bfloat16 as a tensor of the same bytes."""
    if array.dtype != ml_dtypes.bfloat16:
        return array
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
