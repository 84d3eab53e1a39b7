"""How a call is captured and a run recomputed, on PyTorch."""

import contextlib
import itertools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from keras_efficient.backend.errors import WRITES_INTO_ITS_INPUT
from keras_efficient.backend.torch import record_random
from keras_efficient.backend.torch import replay_random

gradients_flow_through_assignments = False


def place():
    return contextlib.nullcontext


def is_dense(x):
    return isinstance(x, torch.Tensor) and x.layout == torch.strided


def is_float(x):
    return x.is_floating_point()


def is_traced(x):
    return False


def is_concrete(x):
    return True


def as_tensor(value):
    return value


def stopped(variable, live):
    return live.detach()


def stop_gradient(x):
    return x.detach()


def copied(x):
    return x.clone()


def needs_gradient(variable, live):
    return live.requires_grad


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx, leaf, value):
        return value.clone()

    @staticmethod
    def backward(ctx, d):
        return d, None


link = _Link.apply


class Capture:
    """Run a call, and find out what it reads.

    It runs on tensors and variables without a graph. Only what nobody knows
    of, parameters of modules and tensors that are closed over, gives its
    outputs one; there they are found (`natives`).

    Args:
        call: A `keras_efficient.autodiff.capture.Call`.
        tensors: List of its arguments, without a graph.
        record: A `Record`, to be entered.

    Attributes:
        results: What the call returned, without a graph.
        reads: What it read, as in `record`, then natives.
        natives: List of live tensors.
    """

    def __init__(self, call, tensors, record):
        self.call = call
        versions = [x._version for x in tensors]
        buffers = _buffers(call.layer)
        before = [b.clone() for b in buffers]
        start = torch.autograd._get_sequence_nr()
        results, self.random = record_random(lambda: call(tensors, record))
        if versions != [x._version for x in tensors]:
            raise ValueError(WRITES_INTO_ITS_INPUT.format(call.layer.name))
        # All of them: kernels of PyTorch write some without a new version.
        self.buffers = list(zip(buffers, before))
        self.variables = [record.variables[key] for key in record.first]
        self.through = record.through
        self.record = type(record)
        self.reads = list(record.first.values())
        self.natives = []
        if any(y.requires_grad for y in results):
            leaves, edges = _ends(results, start)
            self.natives = leaves
            if edges:
                self.natives += self._closed_over(edges, tensors)
        self.results = [y.detach() for y in results]
        self.reads += self.natives

    def replay(self, tensors, reads):
        scope = self.record(zip(self.variables, reads), self.through)
        with replay_random(self.random), _as_before(self.buffers):
            return self.call(tensors, scope)

    def vjp(self, tensors, reads, needed, wanted):
        """Repeat the call, to be differentiated.

        Args:
            tensors: Arguments.
            reads: What it read.
            needed: For each of `reads`, whether it needs a gradient.
            wanted: For each result, whether it may have a cotangent.

        Returns:
            The results, and a function from their cotangents (`None` is zero)
            to lists of those of tensors and of reads, to be called once.
        """
        n = len(self.variables)
        with torch.enable_grad():
            tensors = [_leaf(x, True) for x in tensors]
            leaves = [*map(_leaf, reads[:n], needed), *self.natives]
            results = self.replay(tensors, leaves[:n])
        places = [i for i, x in enumerate(tensors) if x.requires_grad]
        more = [i for i, need in enumerate(needed) if need]
        inputs = [tensors[i] for i in places] + [leaves[i] for i in more]

        def pullback(cotangents):
            pairs = [
                (y, d)
                for y, d in zip(results, cotangents)
                if d is not None and y.requires_grad
            ]
            d_tensors, d_reads = [None] * len(tensors), [None] * len(reads)
            if pairs and inputs:
                ys, ds = zip(*pairs)
                found = torch.autograd.grad(ys, inputs, ds, allow_unused=True)
                for i, d in zip(places, found):
                    d_tensors[i] = d
                for i, d in zip(more, found[len(places) :]):
                    d_reads[i] = d
            return d_tensors, d_reads

        return [y.detach() for y in results], pullback

    def _closed_over(self, edges, tensors):
        """Find the tensors at which edges of the graph arrive.

        The graph does not know them. So the call is repeated, and each
        operation asked what it reads.
        """
        found = {}

        class Look(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                for x in tree_leaves((args, kwargs)):
                    if isinstance(x, torch.Tensor) and x.grad_fn is not None:
                        edge = x.grad_fn, x.output_nr
                        if edge in edges:
                            found[edge] = x
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), Look():
            self.replay(tensors, self.reads)
        return list(found.values())


def _leaf(x, needed):
    return x.detach().requires_grad_(needed and x.is_floating_point())


def _ends(tensors, start):
    """Walk over a graph, back to where it began.

    Args:
        tensors: List of tensors.
        start: Number of the first node that belongs to the graph.

    Returns:
        List of its leaves, and the set of edges to older nodes.
    """
    leaves = [x for x in tensors if x.requires_grad and x.grad_fn is None]
    edges, seen = set(), set()
    nodes = [(x.grad_fn, x.output_nr) for x in tensors if x.grad_fn is not None]
    while nodes:
        node, number = nodes.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        elif node._sequence_nr() < start:
            edges.add((node, number))
        elif node not in seen:
            seen.add(node)
            nodes += node.next_functions
    return list({id(x): x for x in leaves}.values()), edges


_buffer_owners = WeakIdKeyDictionary()


def _buffers(layer):
    """List the buffers of PyTorch's own modules in a layer."""
    owners = _buffer_owners.get(layer)
    if owners is None:
        owners = [m for m in _modules(layer) if m._buffers]
        _buffer_owners[layer] = owners
    buffers = itertools.chain(*(m._buffers.values() for m in owners))
    return [b for b in buffers if b is not None]


def _modules(layer):
    """List all modules in a layer, those in lists of it included."""
    found, new = {}, [layer]
    while new:
        module = new.pop()
        if isinstance(module, torch.nn.Module) and id(module) not in found:
            found[id(module)] = module
            new += [*module._modules.values(), *vars(module).values()]
        elif isinstance(module, (list, tuple)):
            new += module
        elif isinstance(module, dict):
            new += module.values()
    return found.values()


@contextlib.contextmanager
def _as_before(buffers):
    """Show buffers as they were; afterwards they are as they are."""
    now = [b.clone() for b, _ in buffers]
    try:
        # By `data`, which leaves their versions alone.
        for b, old in buffers:
            b.data.copy_(old)
        yield
    finally:
        for (b, _), new in zip(buffers, now):
            b.data.copy_(new)
