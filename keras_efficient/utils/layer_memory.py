import contextlib
import functools

import keras

from keras_efficient import backend
from keras_efficient.backend.replacement import Replacement
from keras_efficient.conversion.step_bytes import as_function
from keras_efficient.layers import ReversibleLayer


def rows_of(model):
    """Return pairs of a name and a layer, which together make up a model.

    Models are divided into their layers, and so is what holds layers that
    were built with `reversible=False`, down to their sub-layers.
    """
    rows = {}

    def add(layer, path, is_plain=False):
        name = f"{path}{layer.name}"
        is_plain |= getattr(layer, "reversible", True) is False
        divided = isinstance(layer, keras.Model) or plain_runs(layer)
        divided = divided or (is_plain and isinstance(layer, ReversibleLayer))
        parts = children_of(layer) if divided else []
        if not parts:
            rows.setdefault(id(layer), (name, layer))
        for part in parts:
            add(part, "" if layer is model else f"{name}/", is_plain)

    add(model, "")
    return [
        (name, layer)
        for name, layer in rows.values()
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def plain_runs(layer):
    """Return the layers in it that were built with `reversible=False`."""
    if getattr(layer, "reversible", True) is False:
        return [layer]
    return [run for part in children_of(layer) for run in plain_runs(part)]


def children_of(layer):
    """Return the layers that are attributes of a layer, or in lists of it."""
    if isinstance(layer, keras.Model) and layer.layers:
        return layer.layers
    # PyTorch has its modules elsewhere.
    found = list(getattr(layer, "children", list)())
    for value in vars(layer).values():
        found += value if isinstance(value, (list, tuple)) else [value]
    layers = {id(x): x for x in found if isinstance(x, keras.Layer)}
    return list(layers.values())


def activations_of(model, rows, inputs):
    """Measure what each layer keeps.

    Args:
        model: Keras model.
        rows: List that `rows_of` returned.
        inputs: Nested structure of tensors, a batch.

    Returns:
        Dict from the number of a row to the bytes that it keeps, with `None`
        for what no row has computed.
    """
    layers = [layer for _, layer in rows]
    fn, params = as_function(model, lambda: _labelled(layers))
    counts = backend.saved_bytes_by_label(fn, params, inputs)
    return {
        None if number is None else int(number): size
        for number, size in counts.items()
    }


@contextlib.contextmanager
def _labelled(layers):
    """Give what a layer computes to its number."""

    def labelled(number, hidden, *args, **kwargs):
        with backend.label(str(number)):
            return hidden(*args, **kwargs)

    replacements = [
        Replacement(layer, "call", functools.partial(labelled, number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for replacement in replacements:
            replacement.remove()
