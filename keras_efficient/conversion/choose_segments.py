"""Which layers, and which parts of graphs, are segments."""

import keras

from keras_efficient.autodiff.graph_calls import record_calls
from keras_efficient.conversion.cut_points import cut
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.layer_tree import blocks
from keras_efficient.conversion.layer_tree import graph_of
from keras_efficient.conversion.layer_tree import graphs
from keras_efficient.conversion.layer_tree import leaves
from keras_efficient.conversion.segments import RecomputedCall
from keras_efficient.conversion.segments import RecomputedGraph
from keras_efficient.conversion.segments import as_it_is
from keras_efficient.conversion.segments import recomputed


def choose_segments(model, segments):
    """List what is to stand for `call` of layers.

    Args:
        model: A `keras.Model`.
        segments: As for `recompute`, and not `None`.

    Returns:
        List of tuples: the class, and its arguments but the last.
    """
    # (`build` of a subclass need not reach the layers inside.)
    inside = all_layers(model)[1:]
    if not model.built or not any(x.built and x.weights for x in inside):
        raise ValueError(
            f"Model '{model.name}' is not built, so that its layers are not "
            "known. Call it on a batch first."
        )
    if isinstance(segments, str) and segments == "auto":
        return _automatic(model)
    if callable(segments) and not isinstance(segments, keras.layers.Layer):
        return _called(_where(segments, model))
    if isinstance(segments, (list, tuple)):
        return _listed(model, segments)
    raise TypeError(
        '`segments` must be "auto", a list of layers or names, a function of '
        f"a layer, or `None`. Received: {segments} (of type {type(segments)})"
    )


def _automatic(model):
    # One that no call has reached is not used.
    found = [layer for layer in blocks(model) if layer.built]
    if leaves(found) >= 0.7 * leaves([model]):
        return _called(found)
    cuts = [_cut(graph) for graph in graphs(model)]
    cuts = [entry for entry in cuts if entry is not None]
    if not cuts and not found:
        raise ValueError(
            f"Nothing to gain for model '{model.name}': it has no layers of "
            "layers of which there are several of one class, and no graph of "
            "layers that could be cut where few bytes cross. (A functional "
            "model whose class has a `call` of its own is not cut.) Name its "
            "segments: `segments=[...]`, a list of layers."
        )
    return cuts or _called(found)


def _cut(model):
    model_of_calls, calls = record_calls(graph_of(model))
    parts = cut(calls, model_of_calls.outputs)
    if parts is None:
        return None
    ways = [recomputed for _ in parts[:-1]] + [as_it_is]
    return RecomputedGraph, model, model_of_calls, list(zip(parts, ways))


def _where(condition, layer):
    """The uppermost layers below `layer` for which `condition` holds."""
    found, below, others = [], set(), all_layers(layer)[1:]
    for x in others:
        if x.built and id(x) not in below and condition(x):
            found.append(x)
            below.update(map(id, all_layers(x)))
    if not found:
        raise ValueError(
            "`segments` is a function that is true for no layer of model "
            f"'{layer.name}' that a call has reached."
        )
    return found


def _listed(model, segments):
    single, groups = [], []
    for entry in segments:
        if isinstance(entry, (list, tuple)):
            groups.append([_layer(model, x) for x in entry])
        else:
            single.append(_layer(model, entry))
    if not segments or not all(groups):
        raise ValueError(
            f"`segments` has no layers in it. Received: {segments}. "
            "To undo it all, pass `None`."
        )
    seen = set()
    for layer in (*single, *(layer for group in groups for layer in group)):
        below = set(map(id, all_layers(layer)))
        if seen & below:
            raise ValueError(
                f"Layer '{layer.name}', or one below, is in two segments."
            )
        seen |= below
    by_graph = {}
    for group in groups:
        owner = _owner(model, group)
        by_graph.setdefault(id(owner), (owner, []))[1].append(group)
    return _called(single) + [_grouped(*entry) for entry in by_graph.values()]


def _layer(model, entry):
    """The layer that is `entry`, or has this name."""
    layers = all_layers(model)[1:]
    found = [x for x in layers if x is entry or x.name == entry]
    if len(found) == 1:
        return found[0]
    if isinstance(entry, str) and found:
        raise ValueError(
            f"Several layers of model '{model.name}' are named '{entry}'. "
            "Pass the layer itself."
        )
    raise ValueError(
        f"Model '{model.name}' has no layer {entry!r}. It has, among others: "
        f"{[x.name for x in layers[:10]]}"
    )


def _called(layers):
    """Each layer is a segment of its own."""
    for layer in layers:
        if not layer.built:
            raise ValueError(
                f"Layer '{layer.name}' is not built: no call of the model has "
                "reached it. Call the model on a batch first, or leave this "
                "layer out."
            )
    return [
        (RecomputedCall, layer, name)
        for layer in layers
        # Keras runs this one instead in a layer that is quantized.
        for name in ("call", "quantized_call")
        if getattr(type(layer), name) is not getattr(keras.Operation, name)
    ]


def _owner(model, group):
    """The model whose graph has the layers of a group."""
    for layer in all_layers(model):
        graph = graph_of(layer)
        if graph and all(x in graph.operations for x in group):
            return layer
    raise ValueError(
        f"The layers {[x.name for x in group]} are not in one functional "
        "model, so that they cannot be one segment. Make each one of its own."
    )


def _grouped(model, groups):
    """Put the calls of a graph in an order in which groups stay together."""
    model_of_calls, calls = record_calls(graph_of(model))
    number = {id(x): i for i, group in enumerate(groups) for x in group}
    parts = {}  # the calls of each group; any other call is alone
    for call in calls:
        key = number.get(id(call.operation), call)
        parts.setdefault(key, []).append(call)
    known = set(map(id, model_of_calls.inputs))
    segments = []
    while parts:
        ready = next((k for k, p in parts.items() if _is_ready(p, known)), None)
        if ready is None:
            names = [
                [x.name for x in groups[key]]
                for key in parts
                if isinstance(key, int)
            ]
            raise ValueError(
                "The layers of a segment must follow each other, with no other "
                f"layer between them. One of these has such layers: {names}"
            )
        part = parts.pop(ready)
        known.update(id(x) for call in part for x in call.makes)
        way = recomputed if isinstance(ready, int) else as_it_is
        segments.append((part, way))
    return RecomputedGraph, model, model_of_calls, segments


def _is_ready(calls, known):
    known = known | {id(x) for call in calls for x in call.makes}
    return all(id(x) in known for call in calls for x in call.reads)
