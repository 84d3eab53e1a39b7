"""The chain of blocks that a backbone is, found in its graph."""

import collections
import inspect

import keras
import keras_hub

from keras_efficient.autodiff.graph_calls import GraphCall
from keras_efficient.autodiff.graph_calls import record_calls
from keras_efficient.layers import ReversibleLayer


class ResidualChain:
    """A graph as what is before a chain of layers, the chain, and the rest.

    Each layer takes the output of the one before and nothing else that is not
    the same for all of them, such as a mask.

    Attributes:
        input, output: Structures of symbolic tensors, those of the graph.
        layers: List of the layers of the chain.
        before, behind: Lists of calls, in an order to run them.
        is_normalized: Whether a normalization follows the chain. Then its
            layers leave the sum of all they add, else each normalizes it.
    """

    def __init__(self, graph, calls, chain):
        self.input, self.output = graph.input, graph.output
        self.layers = [call.operation for call in chain]
        self.first, self.arguments = _arguments(chain[0])
        self.last = chain[-1].output
        needed = {id(x) for x in (self.first, *_tensors(self.arguments))}
        self.before = []
        for call in reversed(calls):
            if needed & set(map(id, call.makes)):
                needed |= set(map(id, call.reads))
                self.before.insert(0, call)
        done = {id(call) for call in (*self.before, *chain)}
        self.behind = [call for call in calls if id(call) not in done]
        self.is_normalized = any(
            call.operation.weights
            and all(len(v.shape) == 1 for v in call.operation.weights)
            for call in self.behind
            if isinstance(call.operation, keras.layers.Layer)
            and any(x is self.last for x in call.reads)
        )

    def enter(self, inputs, training=None, start_index=None):
        """Run what is before the chain.

        Args:
            inputs: Tensors in the structure of `input`.
            training: Python bool or `None`.
            start_index: The place of the first token, for layers that ask.

        Returns:
            A dictionary of tensors for `leave`, the tensor that the chain
            takes, and the dictionary of its further arguments.
        """
        symbols = keras.tree.flatten(self.input)
        tensors = dict(zip(map(id, symbols), keras.tree.flatten(inputs)))
        for call in self.before:
            _run(call, tensors, training, start_index)
        arguments = {
            name: tensors[id(x)] if isinstance(x, keras.KerasTensor) else x
            for name, x in self.arguments.items()
        }
        return tensors, tensors[id(self.first)], arguments

    def leave(self, tensors, x, training=None):
        """Run what is behind the chain, of which `x` is the output."""
        tensors[id(self.last)] = x
        for call in self.behind:
            _run(call, tensors, training)
        return keras.tree.map_structure(lambda x: tensors[id(x)], self.output)


def find_chain(backbone):
    """Return the `ResidualChain` of a backbone, or raise a `TypeError`."""
    if not isinstance(backbone, keras_hub.models.Backbone):
        problem = f"it is a {type(backbone)}"
        if hasattr(backbone, "backbone"):
            problem += " with a `backbone`: pass that"
        raise TypeError(_REFUSED.format(backbone, problem))
    graph, calls = record_calls(backbone)
    chains = _chains(graph, calls)
    for closed in () if chains else calls:
        opened = _opened(graph, calls, closed)
        found = opened and record_calls(opened)
        if found and _problem(calls, inside := _chains(*found)) is None:
            graph, calls, chains = *found, inside
            break
    problem = _problem(calls, chains)
    if problem:
        raise TypeError(_REFUSED.format(backbone, problem))
    return ResidualChain(graph, calls, chains[0])


_REFUSED = (
    "`backbone` must be a `keras_hub.models.Backbone` whose graph is one chain "
    "of blocks: two or more layers of one class that keep the shape, each "
    "called on the output of the one before, with further arguments that all "
    "share. Received: backbone={}, but {}. Use "
    "`keras_efficient.recompute(backbone)`: it computes the same function and "
    "keeps one tensor a layer."
)


def _run(call, tensors, training, start_index=None):
    others = {}
    if start_index is not None and "start_index" in parameters(call.operation):
        others["start_index"] = start_index
    outputs = keras.tree.flatten(call.run(tensors, training, **others))
    tensors.update(zip(map(id, call.makes), outputs))


def parameters(operation):
    """Return the names of the arguments of a layer's call."""
    return inspect.signature(operation.call).parameters


def _tensors(arguments):
    return [x for x in arguments.values() if isinstance(x, keras.KerasTensor)]


def _arguments(call):
    """Return the first argument of a call, and the others by name."""
    bound = inspect.signature(call.operation.call).bind(
        *call.args, **{k: v for k, v in call.kwargs.items() if k != "training"}
    )
    first, *others = bound.arguments.items()
    return first[1], {k: v for k, v in others if v is not None}


def _problem(calls, chains):
    """Say why the chains found in a graph are not what it is, or `None`."""
    if not chains:
        return "no layer in it is called on the output of a like one"
    kinds = [f"{len(x)} {type(x[0].operation).__name__}" for x in chains]
    if len(chains) > 1:
        return f"it has {len(chains)} chains: {', '.join(kinds)}"
    held = {id(v) for call in chains[0] for v in call.operation.weights}
    every = {
        id(v) for call in calls for v in getattr(call.operation, "weights", ())
    }
    if len(held) < len(every) / 2:
        return f"most of its weights are not in its chain of {kinds[0]}"
    return None


def _chains(graph, calls):
    """List the chains of two layers or more, each a list of calls."""
    makers = {id(call.output): call for call in calls}
    readers = collections.Counter(
        id(x)
        for tensors in (*(call.reads for call in calls), graph.outputs)
        for x in tensors
    )
    chains = {}
    for call in calls:
        if not _is_block(call):
            continue
        first, arguments = _arguments(call)
        before = chains.get(id(makers.get(id(first))))
        if (
            before
            and readers[id(first)] == 1
            and type(before[-1].operation) is type(call.operation)
            and _same(_arguments(before[-1])[1], arguments)
        ):
            del chains[id(before[-1])]
            chains[id(call)] = [*before, call]
        else:
            chains[id(call)] = [call]
    return [chain for chain in chains.values() if len(chain) > 1]


def _is_block(call):
    """Whether it is a layer with weights that keeps the shape of a tensor."""
    if not isinstance(call.operation, keras.layers.Layer):
        return False
    if not call.operation.weights or not isinstance(
        call.output, keras.KerasTensor
    ):
        return False
    first, arguments = _arguments(call)
    return (
        isinstance(first, keras.KerasTensor)
        and first.shape == call.output.shape
        and len(call.reads) == 1 + len(_tensors(arguments))
    )


def _same(arguments, others):
    return arguments.keys() == others.keys() and all(
        x is others[k]
        or (not isinstance(x, keras.KerasTensor) and x == others[k])
        for k, x in arguments.items()
    )


def _opened(graph, calls, closed):
    """Return the graph with what a layer calls in the place of this layer.

    Some backbones, as the vision transformers, have their blocks in a layer.

    Returns:
        A functional model, or `None` where what is inside is no graph.
    """
    layer = closed.operation
    is_layer = isinstance(layer, keras.layers.Layer)
    if not is_layer or isinstance(layer, ReversibleLayer) or not layer.weights:
        return None
    tensors = {
        id(x): keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
        for x in keras.tree.flatten(graph.input)
    }
    inputs = keras.tree.map_structure(lambda x: tensors[id(x)], graph.input)
    inside = GraphCall(layer.call, closed.args, closed.kwargs, closed.name)
    for call in calls:
        run = inside.run if call is closed else call.run
        try:
            outputs = keras.tree.flatten(run(tensors, None))
        # Code that asks for values does not run on symbols, and says so in
        # the way of each backend.
        except Exception:
            return None
        tensors.update(zip(map(id, call.makes), outputs))
    outputs = keras.tree.map_structure(lambda x: tensors[id(x)], graph.output)
    model = keras.Model(inputs, outputs)
    found = {id(v) for operation in model.layers for v in operation.weights}
    return model if all(id(v) in found for v in layer.weights) else None
