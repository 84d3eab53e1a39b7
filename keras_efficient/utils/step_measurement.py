"""Measure all that a report or a plan is made of."""

import keras

from keras_efficient import backend
from keras_efficient import optimizers
from keras_efficient.conversion.fit_budget import measure_segments
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.step_bytes import as_function
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.conversion.step_bytes import fixed_bytes
from keras_efficient.utils.measured_step import MeasuredStep

OPTIMIZERS = ("Adam8bit", "MicroAdam", "SinkGD")
# Fewer classes are not worth dividing.
MANY_CLASSES = 256


def measure_step(model, inputs, optimizer=None, advance=lambda text: None):
    """Return the `MeasuredStep` of a model.

    Args:
        model: A Keras model.
        inputs: Nested structure of tensors.
        optimizer: Keras optimizer, its name, or `None` for the model's.
        advance: Function that is told what is done.
    """
    check_built(model)
    advance("The peak of a step")
    fn, params = as_function(model)
    gradient = backend.peak_bytes(fn, params, inputs)
    advance("Segments")
    costs, recomputed = measure_segments(model, inputs)
    return MeasuredStep(
        *fixed_by_optimizer(model, optimizer, advance),
        bytes_of(inputs),
        gradient,
        recomputed,
        costs,
        _logits(model, inputs),
        any(
            isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
            for layer in all_layers(model)
        ),
    )


def check_built(model):
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' is not built, so that its variables "
            "are not known. Call it on a batch once, or start it with a "
            "`keras.Input`."
        )


def fixed_by_optimizer(model, optimizer, advance=lambda text: None):
    """Return `Fixed` by the name of the optimizer, and the state by variable.

    "as it is" stands for the one that is given, or the model's.
    """
    optimizer = optimizer or getattr(model, "optimizer", None)
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    advance("Optimizers")
    own, states = fixed_bytes(model, optimizer)
    fixed = {"as it is": own}
    for name in OPTIMIZERS:
        fixed[name], _ = fixed_bytes(model, getattr(optimizers, name)())
    return fixed, states


def _logits(model, inputs):
    """Bytes of scores of tokens by classes; 0 for other outputs."""
    symbols = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype), inputs
    )
    outputs = keras.tree.flatten(model.compute_output_spec(symbols))
    return sum(
        bytes_of(x)
        for x in outputs
        if len(x.shape) == 3 and x.shape[-1] >= MANY_CLASSES
    )
