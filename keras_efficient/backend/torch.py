"""The primitives on PyTorch."""

import contextlib

import torch
from keras import tree


def vjp(fn, *primals):
    """Return `fn(*primals)` and its pullback, which can be called once."""
    with torch.enable_grad():
        leaves = [
            leaf.detach().requires_grad_() for leaf in tree.flatten(primals)
        ]
        outputs = fn(*tree.pack_sequence_as(primals, leaves))

    def pullback(cotangents):
        gradients = torch.autograd.grad(
            tree.flatten(outputs),
            leaves,
            tree.flatten(cotangents),
            allow_unused=True,
            materialize_grads=True,
        )
        return tree.pack_sequence_as(primals, gradients)

    return tree.map_structure(torch.Tensor.detach, outputs), pullback


def custom_vjp(forward, backward):
    """Make a function whose derivative is `backward`.

    See `keras_efficient.backend.jax.custom_vjp` for the contract.
    """

    def fn(*args):
        call = _Call(forward, backward, args)
        leaves = _CustomVJP.apply(call, *tree.flatten(args))
        return tree.pack_sequence_as(call.outputs, leaves)

    return fn


class _Call:
    """What one use of a custom gradient knows besides its tensors."""

    def __init__(self, forward, backward, args):
        self.forward = forward
        self.backward = backward
        self.args = _structure(args)
        self.outputs = None
        self.residuals = None


class _CustomVJP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *leaves):
        outputs, residuals = call.forward(
            *tree.pack_sequence_as(call.args, leaves)
        )
        call.outputs = _structure(outputs)
        call.residuals = _structure(residuals)
        ctx.call = call
        ctx.save_for_backward(*tree.flatten(residuals))
        return tuple(tree.flatten(outputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents):
        call = ctx.call
        gradients = call.backward(
            tree.pack_sequence_as(call.residuals, ctx.saved_tensors),
            tree.pack_sequence_as(call.outputs, cotangents),
        )
        leaves = []
        for gradient, arg in zip(gradients, call.args):
            missing = [None] * len(tree.flatten(arg))
            leaves += missing if gradient is None else tree.flatten(gradient)
        return None, *leaves


def _structure(values):
    """The nesting of `values` alone: it must not keep a tensor alive."""
    return tree.map_structure(lambda _: 0, values)


def segment(fn, *args, after=()):
    """PyTorch runs in program order."""
    return fn(*args)


def record_random(fn):
    """Return `fn()` and what `replay_random` needs to repeat its draws.

    Keras' unseeded layers (`Dropout(seed=None)`) draw from the generators of
    PyTorch. The state is empty when `fn` has not drawn from them.
    """
    before = _random_state()
    result = fn()
    drawn = not all(map(torch.equal, before, _random_state()))
    return result, before if drawn else []


def _random_state():
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


@contextlib.contextmanager
def replay_random(state):
    """Draw what was drawn from `state` on; afterwards all is as it was."""
    if not state:
        yield
        return
    cuda = [torch.cuda.current_device()] if len(state) > 1 else []
    with torch.random.fork_rng(cuda):
        torch.set_rng_state(state[0])
        for device_state in state[1:]:
            torch.cuda.set_rng_state(device_state)
        yield


def saved_bytes(fn, params, inputs):
    """Count the bytes that autograd saves in `fn`, params and inputs aside."""
    params = tree.map_structure(
        lambda leaf: leaf.detach().requires_grad_(), params
    )
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with torch.random.fork_rng(), hooks:
        outputs = fn(params, inputs)
    for leaf in tree.flatten((params, inputs)):
        kept.pop(leaf.untyped_storage().data_ptr(), None)
    del outputs  # until here, so that no address was used twice
    return sum(kept.values())
