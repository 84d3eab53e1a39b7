"""The primitives on PyTorch."""

import collections
import contextlib

import keras
import torch

from keras_efficient.backend import generators
from keras_efficient.backend import nested
from keras_efficient.backend.errors import NO_SECOND_DERIVATIVE


def vjp(fn, *primals):
    """Return `fn(*primals)` and its pullback, which can be called once.

    What is not floating point (masks, indices) is passed through; its entry
    among the gradients is `None`, and its cotangents are not looked at.
    """
    with torch.enable_grad():
        leaves = [
            x.detach().requires_grad_(x.is_floating_point())
            for x in nested.flatten(primals)
        ]
        outputs = fn(*nested.pack(primals, leaves))

    def pullback(cotangents):
        pairs = zip(nested.flatten(outputs), nested.flatten(cotangents))
        # What depends on none of `primals` has no graph to go back through.
        pairs = [(y, d) for y, d in pairs if y.requires_grad]
        floats = [x for x in leaves if x.requires_grad]
        if not pairs or not floats:
            gradients = map(torch.zeros_like, floats)
        else:
            gradients = torch.autograd.grad(
                [y for y, _ in pairs],
                floats,
                [d for _, d in pairs],
                allow_unused=True,
                materialize_grads=True,
            )
        gradients = iter(gradients)
        return nested.pack(
            primals,
            [next(gradients) if x.requires_grad else None for x in leaves],
        )

    return nested.map_structure(torch.Tensor.detach, outputs), pullback


def custom_vjp(forward, backward):
    """Make a function whose derivative is `backward`.

    See `keras_efficient.backend.jax.custom_vjp` for the contract.
    """

    # Dynamo cannot trace a gradient taken inside of a backward pass. It breaks
    # the graph here and leaves this to eager mode, with its memory.
    @torch.compiler.disable
    def fn(*args):
        call = _Call(forward, backward, args)
        _, *leaves = _CustomVJP.apply(call, *nested.flatten(args))
        return nested.pack(call.outputs, leaves)

    return fn


def not_differentiable(fn):
    """What `custom_vjp` makes raises it already."""
    return fn


class _Call:
    """What one use of a custom gradient knows besides its tensors."""

    def __init__(self, forward, backward, args):
        self.forward = forward
        self.backward = backward
        self.args = _structure(args)
        self.outputs = None
        self.residuals = None
        self.autocast = autocast_state()


class _CustomVJP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *leaves):
        with autocast(call.autocast):
            outputs, residuals = call.forward(*nested.pack(call.args, leaves))
        call.outputs = _structure(outputs)
        call.residuals = _structure(residuals)
        ctx.call = call
        # An output without elements, by which `Once` finds this node.
        thread = torch.empty(0)
        ctx.save_for_backward(thread, *nested.flatten(residuals))
        return thread, *nested.flatten(outputs)

    @staticmethod
    def backward(ctx, _, *cotangents):
        call = ctx.call
        thread, *residuals = ctx.saved_tensors
        with torch.no_grad(), autocast(call.autocast):
            gradients = call.backward(
                nested.pack(call.residuals, residuals),
                nested.pack(call.outputs, cotangents),
            )
        leaves = []
        for gradient, arg in zip(gradients, call.args):
            missing = [None] * len(nested.flatten(arg))
            leaves += missing if gradient is None else nested.flatten(gradient)
        if torch.is_grad_enabled():  # create_graph=True
            leaves = Once.apply(thread, *leaves)
        return None, *leaves


class Once(torch.autograd.Function):
    """Gradients that raise an error when they are differentiated.

    (`once_differentiable` of PyTorch does not where the derivative is asked
    for by name, as `torch.autograd.grad` does.)
    """

    @staticmethod
    def forward(ctx, thread, *gradients):
        return gradients

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError(NO_SECOND_DERIVATIVE)


def autocast_state():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        (name, torch.get_autocast_dtype(name), torch.is_autocast_enabled(name))
        for name in devices
    ]


@contextlib.contextmanager
def autocast(state):
    """Cast as the forward pass did, wherever the backward pass runs.

    Without the cache: casts made in a forward pass without a graph would leave
    parameters without their gradient where they are used again. (PyTorch 2.13
    minds this itself; older ones did not.)
    """
    if not any(enabled for *_, enabled in (*state, *autocast_state())):
        yield  # it takes its time
        return
    with contextlib.ExitStack() as stack:
        for arguments in state:
            stack.enter_context(torch.autocast(*arguments, cache_enabled=False))
        yield


def _structure(values):
    """The nesting of `values` alone: it must not keep a tensor alive."""
    return nested.map_structure(lambda _: 0, values)


def segment(fn, *args, after=()):
    """PyTorch runs in program order."""
    return fn(*args)


def alarm(failed, warn, fail, in_program):
    """Let it be known if `failed` holds.

    See `keras_efficient.backend.jax.alarm`. A GPU is not waited for in order
    to warn: what it finds is looked at in the next call.
    """
    while _alarms and _alarms[0][0].query():
        _, found, say = _alarms.popleft()
        if found:
            say()
    if fail or failed.device.type != "cuda":
        if failed:
            (fail or warn)()
        return
    found = failed.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    _alarms.append((event, found, warn))


# What GPUs have been asked: `(event, answer, warn)`.
_alarms = collections.deque()


gradients_lose_masks = False


def eagerly():
    """A context in which operations run now, and are not differentiated."""
    return torch.no_grad()


def record_random(fn):
    """Return `fn()` and what `replay_random` needs to repeat its draws.

    Keras' unseeded layers (`Dropout(seed=None)`) draw from the generators of
    PyTorch, and code of users from those of Python and NumPy. The state is
    `None` when `fn` has not drawn from them.
    """
    before = _random_state()
    result, others = generators.record(fn)
    own = None if all(map(torch.equal, before, _random_state())) else before
    return result, (own, others) if own or others else None


def _random_state():
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


@contextlib.contextmanager
def replay_random(state):
    """Draw what was drawn from `state` on; afterwards all is as it was."""
    own, others = state or (None, None)
    with generators.replay(others), _replay_own(own):
        yield


@contextlib.contextmanager
def _replay_own(state):
    if state is None:
        yield
        return
    cuda = [torch.cuda.current_device()] if len(state) > 1 else []
    with torch.random.fork_rng(cuda):
        torch.set_rng_state(state[0])
        for device_state in state[1:]:
            torch.cuda.set_rng_state(device_state)
        yield


def leaves(layer):
    """Return a key for each trainable tensor of a layer."""
    return {id(p) for p in layer.parameters() if p.requires_grad}


def leaf_gradients(layer, call, inputs):
    """Differentiate `sum(call(inputs) ** 2) / 2`, as a training step does.

    See `keras_efficient.backend.jax.leaf_gradients`.
    """
    inputs = nested.map_structure(
        lambda x: x.detach().requires_grad_(x.is_floating_point()), inputs
    )
    state = [(v, v.value) for v in layer.variables if not v.trainable]
    buffers = [(b, b.clone()) for b in layer.buffers()]  # of modules
    with torch.enable_grad(), keras.StatelessScope(state):
        outputs = [y for y in nested.flatten(call(inputs)) if y.requires_grad]
    floats = [x for x in nested.flatten(inputs) if x.requires_grad]
    found = [*floats, *_graph_leaves(outputs, floats)]
    gradients = torch.autograd.grad(
        outputs,
        found,
        [y.detach() for y in outputs],
        allow_unused=True,
        materialize_grads=True,
    )
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    given = iter(gradients)
    input_gradients = nested.map_structure(
        lambda x: next(given) if x.requires_grad else None, inputs
    )
    return dict(zip(map(id, found[len(floats) :]), given)), input_gradients


def _graph_leaves(outputs, inputs):
    """List the tensors that gradients flow to, but for `inputs`."""
    nodes, seen, found = [y.grad_fn for y in outputs], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and all(leaf is not x for x in inputs):
            found.append(leaf)
    return found


def run_compiled(fn, args, owner, key):
    """PyTorch runs each operation as it comes."""
    return fn(*args)
