import collections

import keras

from keras_efficient.autodiff.graph_calls import record_calls
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.backend.replacement import remove
from keras_efficient.callbacks.recompute_batch_norm import HeldStatistics
from keras_efficient.conversion.arguments import check_model
from keras_efficient.conversion.install import forget_programs
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.layer_tree import graph_of
from keras_efficient.layers.convolutional.tuned_conv import check_pair
from keras_efficient.layers.convolutional.tuned_conv import tuned_conv


def to_tune_mode(model, tune=True):
    """Fine-tune each convolution and its batch normalization as one, in place.

    Statistics of few images spoil a network that was trained with many; they
    are held, and what remains of a normalization is a scale and a shift of
    the convolution before it:

    ```
    c = gamma / sqrt(moving_variance + epsilon)
    y = conv(x; w c, beta + c (b - moving_mean))
    ```

    computed anew in each step, in float32. Outputs are those in inference,
    for which `keras_efficient.utils.merge_batch_norm` does it once for all.
    Kernels, gamma and beta are trained, with the gradients that they have
    with fixed statistics, and the output of the convolution is no longer kept
    for them: one map less for each pair. Where gamma is frozen
    (`trainable=False`), there is none to save. As nothing is written, the
    network is fit for `keras_efficient.recompute`.

    The model stays the object that it is: variables, their order, names and
    files are the same. A pair is a convolution of Keras, with or without bias,
    and the `BatchNormalization` that alone reads its output. All others are
    left as they are. Call `compile` before or after.

    Args:
        model: A functional or sequential `keras.Model`; also of such models.
        tune: Boolean. `False` undoes it. Defaults to `True`.

    Returns:
        The number of pairs.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: there is no pair.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ])
    assert keras_efficient.utils.to_tune_mode(model) == 1
    ```

    Reference:
        - [You et al., 2023](https://arxiv.org/abs/2305.11624)
    """
    pairs = convolution_pairs(model)
    for conv, bn in pairs:
        for layer in (conv, bn):
            remove(layer, "call", _Pair)
        if tune:
            pair = _Pair(conv, bn)
            Replacement(conv, "call", pair.convolve)
            Replacement(bn, "call", pair.pass_on)
    forget_programs(model)
    return len(pairs)


def is_tuned(bn):
    """Return whether the convolution before it does what it did."""
    return find(bn, "call", _Pair) is not None


class _Pair(HeldStatistics):
    """What a convolution and its normalization do instead."""

    def __init__(self, conv, bn):
        self.conv = conv
        self.bn = bn

    def convolve(self, hidden, inputs):
        return tuned_conv(self.conv, self.bn, inputs, hidden)

    def pass_on(self, hidden, inputs, training=None, mask=None):
        return inputs


def convolution_pairs(model):
    """List convolutions and what normalizes them: called once, one for the
    other alone.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: there is no pair.
    """
    check_model(model)
    graphs = map(graph_of, all_layers(model))
    recorded = [record_calls(graph) for graph in graphs if graph is not None]
    times = collections.Counter(
        id(call.operation) for _, calls in recorded for call in calls
    )
    found = []
    for graph, calls in recorded:
        reads = collections.Counter(
            id(x) for x in keras.tree.flatten(graph.outputs)
        )
        reads.update(id(x) for call in calls for x in call.reads)
        makers = {id(x): call for call in calls for x in call.makes}
        for call in calls:
            maker = makers.get(id(call.reads[0]))
            pair = maker and (maker.operation, call.operation)
            if (
                pair
                and reads[id(call.reads[0])] == 1
                and all(times[id(layer)] == 1 for layer in pair)
                and check_pair(*pair) is None
            ):
                found.append(pair)
    if not found:
        raise ValueError(
            f"Model '{model.name}' has no convolution whose output is read by "
            "a `BatchNormalization` alone, in a functional or sequential "
            "model. Use `keras_efficient.layers.ConvBN` in a subclass."
        )
    return found
