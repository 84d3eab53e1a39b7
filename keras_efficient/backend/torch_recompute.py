"""How a run is recomputed, on PyTorch."""

import torch

from keras_efficient.backend.errors import CLOSED_OVER
from keras_efficient.backend.errors import NO_FUNCTION_TRANSFORM
from keras_efficient.backend.torch import Once
from keras_efficient.backend.torch import autocast
from keras_efficient.backend.torch import autocast_state


# Dynamo cannot trace a gradient taken inside of a backward pass. It breaks the
# graph here and leaves this to eager mode, with its memory.
@torch.compiler.disable
def recomputed(tape, tensors):
    """Run `tape.trace`, and take its derivative from `tape.backward`.

    There is one node for each step of the backward pass, so that gradients of
    parameters are handed out, and their hooks run, step by step. What passes
    between them (streams and cotangents) does not pass through the graph, in
    which a thread holds them together.

    Args:
        tape: A `keras_efficient.autodiff.tape.Tape`.
        tensors: List of tensors.

    Returns:
        What `tape.trace` returns.
    """
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(NO_FUNCTION_TRANSFORM)
    run = _Run(tape)
    given = [x.detach() for x in tensors]
    with autocast(run.autocast):
        run.results = tape.trace(given)
    if any(y.requires_grad for y in run.results):
        raise ValueError(CLOSED_OVER)
    if not torch.is_grad_enabled():
        return run.results
    run.given, tape.kept, run.kept = given, None, tape.kept
    thread = _Begin.apply(run, *tensors)
    for step, numbers in enumerate(tape.steps):
        live = [tape.sources[k] for k in numbers]
        thread = _Step.apply(run, step, thread, *live)
    tape.sources = None
    return list(_End.apply(run, thread))


class _Run:
    """What the nodes of one run share."""

    def __init__(self, tape):
        self.tape = tape
        self.autocast = autocast_state()
        self.results = self.kept = self.given = self.backward = None


class _Begin(torch.autograd.Function):
    """The first node forward, the last backward: gives to the arguments."""

    @staticmethod
    def forward(ctx, run, *tensors):
        ctx.run = run
        floats = [x for x in tensors if x.is_floating_point()]
        like = floats[0] if floats else torch.empty(0)
        return _thread(ctx, like.new_zeros((), dtype=torch.float32))

    @staticmethod
    def backward(ctx, d_thread):
        found, ctx.run.backward = ctx.run.backward.arguments(), None
        return None, *_once(ctx, found)


class _Step(torch.autograd.Function):
    """Gives to the sources of one step."""

    @staticmethod
    def forward(ctx, run, step, thread, *sources):
        ctx.run, ctx.step = run, step
        taken = run.tape.slots[step]
        numbers = run.tape.steps[step]
        # Of one that is written, the value from before is kept elsewhere.
        sources = [
            x if ("source", k) in taken else None
            for k, x in zip(numbers, sources)
        ]
        return _thread(ctx, thread.clone(), *sources)

    @staticmethod
    def backward(ctx, d_thread):
        run, sources = ctx.run, ctx.saved_tensors[1:]
        with torch.no_grad(), autocast(run.autocast):
            found = run.backward.step(ctx.step, sources)
        return None, None, d_thread, *_once(ctx, found)


class _End(torch.autograd.Function):
    """The last node forward, the first backward: takes from the results."""

    @staticmethod
    def forward(ctx, run, thread):
        ctx.run = run
        ctx.set_materialize_grads(False)
        results, kept, given = run.results, run.kept, run.given
        run.results = run.kept = run.given = None
        outputs, given = run.tape.hand_over(results, given)
        ctx.counts = len(outputs), len(kept)
        ctx.save_for_backward(thread, *outputs, *kept, *given)
        return tuple(results)

    @staticmethod
    def backward(ctx, *d_results):
        run, (n, m) = ctx.run, ctx.counts
        thread, *saved = ctx.saved_tensors
        outputs, kept, given = saved[:n], saved[n : n + m], saved[n + m :]
        with torch.no_grad(), autocast(run.autocast):
            run.backward = run.tape.backward(
                outputs, given, kept, None, list(d_results)
            )
        return None, torch.zeros_like(thread)


def _thread(ctx, thread, *saved):
    ctx.save_for_backward(thread, *saved)
    return thread


def _once(ctx, gradients):
    if torch.is_grad_enabled():  # create_graph=True
        return Once.apply(ctx.saved_tensors[0], *gradients)
    return gradients


def to_host(x):
    """Copy a tensor to the memory of the host, unless it lies there.

    Returns:
        The copy, and the function that brings it back to the device.
    """
    device = x.device
    if device.type == "cpu":
        return x, lambda x: x
    pinned = device.type == "cuda"
    copy = torch.empty_like(x, device="cpu", pin_memory=pinned).copy_(x)
    return copy, lambda copy: copy.to(device, non_blocking=pinned)
