"""A model that exists, made to recompute its activations in place."""

import keras

from keras_efficient.conversion.cut_points import cut
from keras_efficient.conversion.cut_points import nodes_of
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.layer_tree import blocks
from keras_efficient.conversion.layer_tree import graph_of
from keras_efficient.conversion.layer_tree import graphs
from keras_efficient.conversion.layer_tree import leaves
from keras_efficient.conversion.segments import RecomputedCall
from keras_efficient.conversion.segments import RecomputedGraph


def recompute(model, segments="auto"):
    """Make a model recompute its activations in training, in place.

    The model stays the object that it is, with its class, variables, summary
    and config, and computes the same function: outputs, gradients, batch
    statistics, random numbers, losses and masks. While it trains, what is
    inside its segments is not kept for the backward pass, but computed again,
    at the cost of about one more evaluation, a third of the time of a step.
    Calls with another `training` than `True`, such as those of `predict` and
    of `generate`, run as before. (A subclass of `keras.Model` need not pass
    `training` on to its layers: there all calls run through the segments.)

    It is a property of the object, not of what is saved: a saved model loads
    without this library, and copies and clones are plain; ask again for them.
    Call it on the model that is compiled and trained, before or after
    `compile`, `fit`, `enable_lora` or `quantize`. A second call replaces what
    the first one did.

    Args:
        model: A built `keras.Model`.
        segments: What is recomputed as one, keeping only what goes into it:

            - `"auto"`: block layers, that is layers of layers of which there
              are several of one class, one segment each (transformers);
              graphs of many small layers (ResNet, U-Net) are cut where few
              bytes cross, skips that cross a cut being kept;
            - a list of layers or of their names, one segment each. An entry
              may be a list itself, of layers of a functional model that
              follow each other: they are one segment;
            - a function of a layer, which returns `True` for each layer that
              is to be a segment. Layers below one are not asked for;
            - `None`: nothing; it undoes what was done before.

            Defaults to `"auto"`.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`, or `segments` is none of
            the above.
        ValueError: The model is not built, there is nothing to be gained, or
            layers are unknown, not built, in several segments, or do not
            follow each other. The model is unchanged.

    Example:

    ```python
    model = keras.applications.ResNet50(weights=None)
    keras_efficient.recompute(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    ```

    Reference:
        - [Chen et al., 2016](https://arxiv.org/abs/1604.06174)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: {model} (of type {type(model)})"
        )
    layers = all_layers(model)
    # All that can fail comes first.
    replacements = [] if segments is None else _choose(model, segments)
    for layer in layers:
        _undo(layer)
    # A subclass may fail to pass `training` on, or not ask for it at all;
    # then the first Dropout tells all layers behind it that it is `False`.
    modes = (True,) if graph_of(model) else (True, False, None)
    for layer, make, *more in replacements:
        replacement = make(layer, modes, *more)
        vars(layer)[replacement.name] = replacement
    if getattr(model, "train_function", None) is not None:
        model.train_function = None  # it was compiled for another model
    return model


def _undo(layer):
    for found in {id(x): x for x in (layer, graph_of(layer))}.values():
        for kind in (RecomputedCall, RecomputedGraph):
            if isinstance(vars(found or layer).get(kind.name), kind):
                del vars(found or layer)[kind.name]


def _choose(model, segments):
    """List `(layer, class that stands for its method, *arguments)`."""
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so that its layers are not "
            "known. Call it on a batch first."
        )
    if isinstance(segments, str) and segments == "auto":
        return _automatic(model)
    if callable(segments):
        return _called(_where(segments, model))
    if isinstance(segments, (list, tuple)):
        return _listed(model, segments)
    raise TypeError(
        '`segments` must be "auto", a list of layers or names, a function of '
        f"a layer, or `None`. Received: {segments} (of type {type(segments)})"
    )


def _automatic(model):
    found = blocks(model)
    if leaves(found) >= 0.7 * leaves([model]):
        return _called(found)
    cuts = [(graph, cut(graph)) for graph in graphs(model)]
    cuts = [(graph, parts) for graph, parts in cuts if parts is not None]
    if not cuts and not found:
        raise ValueError(
            f"Nothing to gain for model '{model.name}': it has no layers of "
            "layers of which there are several of one class, and no graph of "
            "layers that could be cut where few bytes cross. Name its "
            "segments: `segments=[...]`, a list of layers."
        )
    if not cuts:
        return _called(found)
    return [
        (
            graph,
            RecomputedGraph,
            [*((part, True) for part in parts[:-1]), (parts[-1], False)],
        )
        for graph, parts in cuts
    ]


def _where(condition, layer):
    """The uppermost layers below `layer` for which `condition` holds."""
    found, below, others = [], set(), all_layers(layer)[1:]
    for x in others:
        if id(x) not in below and condition(x):
            found.append(x)
            below.update(map(id, all_layers(x)))
    if not found:
        raise ValueError(
            "`segments` is a function that is true for no layer of model "
            f"'{layer.name}'."
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
        graph = _graph_with(model, group)
        by_graph.setdefault(id(graph), (graph, []))[1].append(group)
    return _called(single) + [
        (graph, RecomputedGraph, _ordered(graph, groups))
        for graph, groups in by_graph.values()
    ]


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
                f"Layer '{layer.name}' is not built. Call the model on a batch "
                "first."
            )
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"Layer '{layer.name}' is quantized itself, and Keras does not "
                "run its `call`. Choose a layer around it."
            )
    return [(layer, RecomputedCall) for layer in layers]


def _graph_with(model, group):
    for layer in all_layers(model):
        graph = graph_of(layer)
        if graph and all(x in graph.operations for x in group):
            return graph
    raise ValueError(
        f"The layers {[x.name for x in group]} are not in one functional "
        "model, so that they cannot be one segment. Make each one of its own."
    )


def _ordered(graph, groups):
    """Put the calls of a graph in an order in which groups stay together."""
    number = {id(x): i for i, group in enumerate(groups) for x in group}
    parts = {}  # nodes of each group; any other node is alone
    for node in nodes_of(graph):
        key = number.get(id(node.operation), node)
        parts.setdefault(key, []).append(node)
    known = set(map(id, graph.inputs))
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
        known.update(id(x) for node in part for x in node.outputs)
        segments.append((part, isinstance(ready, int)))
    return segments


def _is_ready(nodes, known):
    made = {id(x) for node in nodes for x in node.outputs}
    return all(
        id(x) in known or id(x) in made
        for node in nodes
        for x in node.input_tensors
    )
