"""Budgets and batches, as users give them."""

import math
import numbers
import re

import keras
from keras import ops

_UNITS = {"": 2**30, "b": 1}
_UNITS |= {f"{k}b": 1000**i for i, k in enumerate("kmgt", 1)}
_UNITS |= {f"{k}ib": 1024**i for i, k in enumerate("kmgt", 1)}


def as_bytes(budget):
    """Read a budget: a number of GiB, or a string such as "8GiB"."""
    found = re.fullmatch(
        r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", str(budget).lower()
    )
    try:
        size = float(found[1]) * _UNITS[found[2]]
    except (TypeError, KeyError, ValueError):
        size = 0
    if not 0 < size < math.inf or isinstance(budget, bool):
        raise ValueError(
            "`budget` must be a positive number of GiB or a string such as "
            f'"8GiB" or "500MB". Received: {budget!r}'
        )
    return size


def in_words(size):
    """Write bytes as KB, MB or GB."""
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} KB"


def check_model(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: {model} (of type {type(model)})"
        )


def batch_size(inputs):
    return int(keras.tree.flatten(inputs)[0].shape[0])


def as_batch(model, inputs):
    """Return a batch as tensors.

    Args:
        model: A built Keras model.
        inputs: A batch: array, tensor or a nested structure of them; a
            dataset or a generator, whose first batch is taken; or the number
            of examples, for a model that knows the shape of its inputs.
    """
    if isinstance(inputs, numbers.Integral) and not isinstance(inputs, bool):
        return _zeros(model, int(inputs))
    if isinstance(inputs, keras.utils.PyDataset):
        inputs = keras.utils.unpack_x_y_sample_weight(inputs[0])[0]
    elif hasattr(inputs, "__iter__") and not (
        isinstance(inputs, (list, tuple, dict)) or hasattr(inputs, "shape")
    ):
        inputs = keras.utils.unpack_x_y_sample_weight(next(iter(inputs)))[0]
    leaves = keras.tree.flatten(inputs)
    if not leaves or not all(getattr(x, "shape", ()) for x in leaves):
        raise TypeError(
            "`inputs` must be a batch (array, tensor or a nested structure of "
            "them), a dataset, or an integer, the number of examples. "
            f"Received: inputs={inputs!r}"
        )
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _zeros(model, count):
    try:
        specs = model.input
    except AttributeError:  # a Sequential, or a model with its own `call`
        specs = next(iter(getattr(model, "inputs", None) or []), None)
    shapes = [x.shape[1:] for x in keras.tree.flatten(specs) if x is not None]
    if not shapes or any(None in shape for shape in shapes):
        raise ValueError(
            f"The inputs of the model '{model.name}' have no fixed shape "
            f"beyond the batch. Pass a batch instead of inputs={count}."
        )
    if count < 1:
        raise ValueError(f"`inputs` must be positive. Received: {count}")
    return keras.tree.map_structure(
        lambda x: ops.zeros((count, *x.shape[1:]), x.dtype), specs
    )
