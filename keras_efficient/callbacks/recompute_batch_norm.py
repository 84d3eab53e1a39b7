import contextlib

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.layers_inside import layers_inside
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.callbacks.average_weights import assign_all
from keras_efficient.callbacks.average_weights import host_copies


def recompute_batch_norm(model, dataset, steps=None, batch_size=32):
    """Compute the statistics of all batch normalizations anew, over a dataset.

    ```
    mean = sum(n_b mean_b) / sum(n_b)
    variance = sum(n_b (variance_b + mean_b^2)) / sum(n_b) - mean^2
    ```

    for batches of n_b values a channel, padding that a mask hides left out:
    the statistics of the whole, not a moving average. Layers run as in
    training, with the statistics of each batch. Where weights have been
    averaged or merged, those that are there belong to no network.

    Normalizations that are frozen stay as they are: those with
    `trainable=False`, by `keras_efficient.utils.freeze_statistics`, or in tune
    mode. So do all other variables, seeds included.

    Args:
        model: A built `keras.Model`.
        dataset: An array or a dictionary of them; or what yields batches,
            `x` or `(x, y, ...)`: a `keras.utils.PyDataset`, a
            `tf.data.Dataset`, a `DataLoader`, a list or a generator.
        steps: Integer, how many batches to take. Defaults to `None`: all.
        batch_size: Integer, for arrays. Defaults to `32`.

    Returns:
        The number of normalizations.

    Raises:
        ValueError: the model has none, or `dataset` is empty.

    Example:

    ```python
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization()]
    )
    x = keras.random.normal((64, 4))
    keras_efficient.utils.recompute_batch_norm(model, x)
    ```
    """
    layers = norms_with_statistics(model)
    if not layers:
        raise ValueError(
            f"Model '{model.name}' must have a trainable `BatchNormalization`. "
            "It has none."
        )
    variables = model.non_trainable_variables
    before = host_copies(variables)
    sums = {id(layer): _Sums(layer) for layer in layers}
    try:
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_observed(layer, sums[id(layer)]))
            for i, batch in enumerate(_batches(dataset, batch_size)):
                if i == steps:
                    break
                x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
                model(_tensors(x), training=True)
    finally:
        assign_all(variables, before)
    if not any(x.count for x in sums.values()):
        raise ValueError(
            "`dataset` must yield batches that reach the normalizations. "
            "It yielded none."
        )
    for layer in layers:
        sums[id(layer)].write()
    return len(layers)


def norms_with_statistics(model):
    """List the batch normalizations whose statistics move in training."""
    return [
        layer
        for layer in layers_inside(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and find(layer, "call", HeldStatistics) is None
    ]


class HeldStatistics:
    """Stands for `call` of a normalization, with statistics that stay."""


class _Sums:
    """Sums over batches of what goes into a normalization, in float64."""

    def __init__(self, layer):
        self.layer = layer
        self.count = self.first = self.second = 0.0

    def add(self, x, mask):
        axis = self.layer.axis % len(x.shape)
        x = ops.moveaxis(ops.cast(x, "float32"), axis, -1)
        axes = tuple(range(len(x.shape) - 1))
        weights = ops.ones_like(x[..., :1])
        if mask is not None:
            mask = ops.cast(mask, "float32")
            shape = (*mask.shape, *(1,) * (len(x.shape) - len(mask.shape)))
            weights = weights * ops.reshape(mask, shape)
        count = ops.sum(weights)
        mean = ops.sum(weights * x, axes) / ops.maximum(count, 1.0)
        variance = ops.sum(weights * ops.square(x - mean), axes)
        count, mean, variance = (
            np.asarray(ops.convert_to_numpy(y), "float64")
            for y in (count, mean, variance)
        )
        self.count += count
        self.first += count * mean
        self.second += variance + count * mean**2

    def write(self):
        if self.count:
            mean = self.first / self.count
            variance = self.second / self.count - mean**2
            statistics = self.layer.moving_mean, self.layer.moving_variance
            assign_all(statistics, [mean, np.maximum(variance, 0.0)])


@contextlib.contextmanager
def _observed(layer, sums):
    """Within, each call of a layer adds its input to the sums."""

    def observe(call, inputs, training=None, mask=None):
        if training:  # a layer around it may say otherwise
            sums.add(inputs, mask)
        return call(inputs, training=training, mask=mask)

    replacement = Replacement(layer, "call", observe)
    try:
        yield
    finally:
        replacement.remove()


def _batches(dataset, batch_size):
    """Iterate over batches of arrays, or what yields them."""
    if isinstance(dataset, keras.utils.PyDataset):
        return (dataset[i] for i in range(len(dataset)))
    if not (hasattr(dataset, "shape") or isinstance(dataset, dict)):
        return iter(dataset)
    size = keras.tree.flatten(dataset)[0].shape[0]
    return (
        keras.tree.map_structure(lambda x: x[i : i + batch_size], dataset)
        for i in range(0, size, batch_size)
    )


def _tensors(x):
    return keras.tree.map_structure(ops.convert_to_tensor, x)
