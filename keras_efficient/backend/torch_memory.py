"""What a training step holds in memory, on PyTorch."""

import collections
import contextlib
import gc

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from keras_efficient.backend import nested

_labels = []
# Bytes of the gradients of the step before, while they are there.
_old_gradients = []


def drop_gradients():
    """Say that a step drops the gradients of the one before at this place."""
    _old_gradients.clear()


@contextlib.contextmanager
def label(name):
    """Give what is saved within to `name`."""
    _labels.append(name)
    try:
        yield
    finally:
        _labels.pop()


def saved_bytes(fn, params, inputs):
    """Count the bytes that autograd saves in `fn`, params and inputs aside."""
    return sum(saved_bytes_by_label(fn, params, inputs).values())


def saved_bytes_by_label(fn, params, inputs):
    """Count them by the label that was set when they were saved."""
    params = _leaves(params)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        name = _labels[-1] if _labels else None
        kept.setdefault(storage.data_ptr(), (name, storage.nbytes()))
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with torch.random.fork_rng(), hooks:
        outputs = fn(params, inputs)
    for leaf in nested.flatten((params, inputs)):
        kept.pop(leaf.untyped_storage().data_ptr(), None)
    del outputs  # until here, so that no address was used twice
    counts = collections.Counter()
    for name, size in kept.values():
        counts[name] += size
    return dict(counts)


def products_by_label(fn, params, inputs):
    """Count the multiplications of products and convolutions in `fn`."""
    counts = collections.Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            operations = flop_registry.get(func.overloadpacket)
            if operations:
                count = operations(*args, **(kwargs or {}), out_val=result)
                counts[_labels[-1] if _labels else None] += count // 2
            return result

    with torch.no_grad(), torch.random.fork_rng(), Count():
        fn(params, inputs)
    return dict(counts)


def peak_bytes(fn, params, inputs, release=False):
    """Count the most bytes alive in the gradient of `sum(fn)`, with it.

    With `release` each gradient is gone as soon as it is complete. Without,
    those of the step before are there until `drop_gradients`, or `fn` ends.
    """
    params = _leaves(params)
    old = 0 if release else sum(x.nbytes for x in nested.flatten(params))
    # What a first call keeps for good moves the places where the collector does
    # its work; in the second call they are the same each time.
    for _ in range(2):
        gc.collect()
        with torch.random.fork_rng(), count_alive((params, inputs)) as storages:
            _old_gradients.append(old)
            try:
                outputs = nested.flatten(fn(params, inputs))
            finally:
                drop_gradients()
            outputs = [y for y in outputs if y.requires_grad]
            ones = [torch.ones_like(y) for y in outputs]
            leaves = nested.flatten(params)
            if outputs and leaves and release:
                _backward(outputs, leaves, ones)
            elif outputs and leaves:
                torch.autograd.grad(outputs, leaves, ones, allow_unused=True)
            del outputs, ones
    return storages.peak


def _backward(outputs, leaves, ones):
    """Compute gradients and drop each of them."""

    def drop(leaf):
        leaf.grad = None

    hooks = [x.register_post_accumulate_grad_hook(drop) for x in leaves]
    torch.autograd.backward(outputs, ones, inputs=leaves)
    for hook in hooks:
        hook.remove()


def update_bytes(prepare):
    """Count the most bytes alive in a call, besides what is there before.

    Args:
        prepare: Function that returns the call, and a nested structure of
            the tensors that it knows.
    """
    call, known = prepare()
    with torch.no_grad(), count_alive(known) as storages:
        call()
    return storages.peak


def _leaves(params):
    return nested.map_structure(
        lambda leaf: leaf.detach().requires_grad_(), params
    )


class count_alive(TorchDispatchMode):
    """A context that follows the storages that operations write.

    Each is followed until it is freed, so it does not matter whether autograd,
    a module or a context holds it; storages that were resized count with the
    size that they have. The most bytes at the end of any operation are in
    `peak`.

    Args:
        known: Nested structure of tensors, which do not count.
    """

    def __init__(self, known):
        super().__init__()
        self.known = {
            tensor.untyped_storage().data_ptr() for tensor in tree_leaves(known)
        }
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
        alive = sum(storage.nbytes() for storage in self.alive)
        return alive + sum(_old_gradients)
