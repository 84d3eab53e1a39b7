"""DTensors: parameters and state of which each rank has a part."""

import keras
import torch


def is_divided(x):
    """Return whether a tensor is a DTensor."""
    plain = torch.Tensor, torch.nn.Parameter
    if not isinstance(x, torch.Tensor) or type(x) in plain:
        return False  # without an import that takes its time
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def local(x):
    """Return the part of a DTensor that is here, in its own memory."""
    return x.detach().to_local() if is_divided(x) else x


def division(x):
    """Return how the first axis of a DTensor is divided.

    Returns:
        Pair of the number of parts and which of them is here; `None` where
        another axis is divided, or something else.
    """
    parts = [
        (x.device_mesh.size(i), x.device_mesh.get_local_rank(i))
        for i, placement in enumerate(x.placements)
        if placement.is_shard(0)
    ]
    others = [p for p in x.placements if not p.is_shard(0)]
    if len(parts) > 1 or not all(p.is_replicate() for p in others):
        return None
    return parts[0] if parts else (1, 0)


def is_alike(x, like):
    """Return whether two DTensors are divided alike."""
    return is_divided(x) and (x.device_mesh, x.placements) == (
        like.device_mesh,
        like.placements,
    )


def zeros(shape, dtype, like, axis):
    """Return zeros, divided along an axis as the first one of a DTensor."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor import zeros

    return zeros(
        tuple(shape),
        dtype=getattr(torch, dtype),
        device_mesh=like.device_mesh,
        placements=[
            Shard(axis) if placement.is_shard() else placement
            for placement in like.placements
        ],
    )


def divided(array, like):
    """Return the part of an array that a DTensor has here, as a DTensor."""
    from torch.distributed.tensor import distribute_tensor

    x = keras.ops.convert_to_tensor(array)
    return distribute_tensor(
        x.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None
    )


def whole(variable):
    """Return all of a variable, as an array. All ranks have to ask for it."""
    x = variable.value
    if is_divided(x):
        variable = x.detach().full_tensor()
    return keras.ops.convert_to_numpy(variable)


def mean_of_processes(number):
    """Return the mean of a number of each process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    total = torch.tensor(number, dtype=torch.float64)
    if distributed.get_backend() == "nccl":
        total = total.float().cuda()
    distributed.all_reduce(total)
    return total.item() / distributed.get_world_size()


def average(x):
    """Overwrite a tensor with the mean of those of all processes."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        with torch.no_grad():
            distributed.all_reduce(x.detach())
            x.detach().div_(distributed.get_world_size())
