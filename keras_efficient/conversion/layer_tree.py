"""The layers of a model as a tree, and the blocks in it."""

import collections
import functools

import keras

# A graph of more operations is cut (`cut_points.py`) rather than taken as a
# block.
LARGE_GRAPH = 16


def sub_layers(layer):
    """The layers right below, as attributes or in lists and dictionaries."""
    if type(layer).__module__.startswith("keras_efficient.layers.reversible"):
        return []  # it keeps little as it is, and calls them in its own way
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    found, rest = {}, list(vars(layer).values())
    while rest:
        value = rest.pop(0)
        if isinstance(value, keras.layers.Layer):
            found[id(value)] = value
        elif isinstance(value, (list, tuple)):
            rest.extend(value)
        elif isinstance(value, dict):
            rest.extend(value.values())
    found.pop(id(layer), None)
    return list(found.values())


def all_layers(layer):
    """`layer` and all layers below, each once, from the top down."""
    found, rest = {}, [layer]
    while rest:
        layer = rest.pop(0)
        if id(layer) not in found:
            found[id(layer)] = layer
            rest += sub_layers(layer)
    return list(found.values())


def leaves(layers):
    """Count the layers below `layers` that have no layers themselves."""
    below = {id(x): x for layer in layers for x in all_layers(layer)}
    return sum(not sub_layers(x) for x in below.values())


def graph_of(layer):
    """The functional model that a functional or sequential one runs."""
    if isinstance(layer, keras.Sequential):
        try:
            inputs, outputs = layer.inputs, layer.outputs
        except (AttributeError, ValueError):
            return None  # it is not built, or runs its layers one by one
        if type(layer).call is not keras.Sequential.call or not outputs:
            return None
        return keras.Model(inputs[0], outputs[0], name=layer.name)
    if isinstance(layer, keras.Function):
        return layer if type(layer).call is _functional_call() else None
    return None


@functools.cache
def _functional_call():
    """`call` of functional models; what overrides it may do more."""
    x = keras.Input((1,))
    return type(keras.Model(x, x, name="functional")).call


def blocks(layer, above=()):
    """Layers of layers of which there are several of one class, side by side.

    The uppermost ones, unless all that is in them is blocks again: stages of a
    network are not its blocks.
    """
    composite = [
        x for x in sub_layers(layer) if sub_layers(x) and x not in above
    ]
    count = collections.Counter(map(type, composite))
    found = {}
    for x in composite:
        inner = blocks(x, (*above, layer))
        graph = graph_of(x)
        is_block = count[type(x)] > 1 and not (
            graph and len(graph.operations) > LARGE_GRAPH
        )
        is_stage = len(inner) > 2 and leaves(inner) >= 0.8 * leaves([x])
        chosen = [x] if is_block and not is_stage else inner
        found.update({id(block): block for block in chosen})
    return list(found.values())


def graphs(layer, above=()):
    """The models of layers below `layer`, or itself, that are graphs.

    The uppermost ones, unless most layers are in graphs further down.
    """
    inner = {}
    for x in sub_layers(layer):
        if x not in above:
            inner.update({id(g): g for g in graphs(x, (*above, layer))})
    inner = list(inner.values())
    own = graph_of(layer)
    if own is None or leaves(inner) >= 0.5 * leaves([layer]):
        return inner
    return [layer] if len(own.operations) > 2 else []
