import keras

from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import remove
from keras_efficient.callbacks.recompute_batch_norm import HeldStatistics
from keras_efficient.conversion.arguments import check_model
from keras_efficient.conversion.install import forget_programs
from keras_efficient.conversion.layer_tree import all_layers


def freeze_statistics(model, freeze=True):
    """Hold the statistics of all batch normalizations of a model, in place.

    They normalize by their moving statistics in training, too, and write
    none:

    ```
    y = gamma (x - moving_mean) / sqrt(moving_variance + epsilon) + beta
    ```

    For fine-tuning with few images a batch, whose statistics are of no use,
    and beside optimizers that decide themselves what is trained, such as
    `keras_efficient.optimizers.Unfreezing`: weights stay there, statistics
    would not. Gamma and beta go on being trained, which `trainable=False`
    would end. It saves no memory; `keras_efficient.utils.to_tune_mode` does
    the same for pairs of a convolution and its normalization, and does.

    The model stays the object that it is: variables and files are the same.
    Call `compile` before or after. A model that is loaded from a file, or
    cloned, has statistics that move.

    Args:
        model: A `keras.Model`.
        freeze: Boolean. `False` undoes it. Defaults to `True`.

    Returns:
        The number of normalizations.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: it has no `BatchNormalization`.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((4,)), keras.layers.BatchNormalization()
    ])
    assert keras_efficient.utils.freeze_statistics(model) == 1
    ```
    """
    check_model(model)
    layers = [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        raise ValueError(
            f"Model '{model.name}' must have a `BatchNormalization`. "
            "It has none."
        )
    for layer in layers:
        remove(layer, "call", _Held)
        if freeze:
            Replacement(layer, "call", _Held().call)
    forget_programs(model)
    return len(layers)


class _Held(HeldStatistics):
    """What a normalization does instead."""

    def call(self, hidden, inputs, training=None, mask=None):
        return hidden(inputs, training=False, mask=mask)
