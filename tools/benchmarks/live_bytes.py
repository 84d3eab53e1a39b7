"""What PyTorch holds in memory during a training step, whoever holds it."""

import gc

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def live_bytes(model, x, cotangent, parameters):
    """Count the bytes of tensors alive in one forward and backward pass.

    Every storage that an operation writes is followed until it is freed, so
    it does not matter whether autograd, a module or a context holds it, and
    storages that were resized count with the size that they have.

    Args:
        model: A module or Keras model.
        x: Tensor, its inputs.
        cotangent: Tensor, the gradient of its outputs.
        parameters: List of tensors. These, `x` and `cotangent` do not count.

    Returns:
        Dictionary: "kept", the bytes alive between the passes, with the
        outputs, and "peak", the most at the end of any operation, with the
        gradients.
    """
    with _Storages([x, cotangent, *parameters]) as storages:
        outputs = model(x)
        gc.collect()
        kept = storages.count()
        outputs.backward(cotangent)
    for tensor in (x, *parameters):
        tensor.grad = None
    return {"kept": kept, "peak": storages.peak}


class _Storages(TorchDispatchMode):
    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.alive[storage] = True
        self.peak = max(self.peak, self.count())
        return result

    def count(self):
        return sum(storage.nbytes() for storage in self.alive)
