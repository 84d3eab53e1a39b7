"""Measure all that a report or a plan is made of."""

import functools

import keras

from keras_efficient import backend
from keras_efficient import optimizers
from keras_efficient.conversion.chunk_loss import hidden_states
from keras_efficient.conversion.fit_budget import measure_segments
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.release_gradients import is_released
from keras_efficient.conversion.step_bytes import as_function
from keras_efficient.conversion.step_bytes import as_step
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.conversion.step_bytes import fixed_bytes
from keras_efficient.conversion.step_bytes import largest
from keras_efficient.conversion.step_bytes import output_specs
from keras_efficient.models.chunked_training import ChunkedTraining
from keras_efficient.utils.measured_step import MeasuredStep

LEVERS = ("recompute", "optimizer", "bfloat16", "chunk_loss", "micro_batches")
OPTIMIZERS = ("Adam8bit", "MicroAdam", "SinkGD")
# Fewer classes are not worth dividing.
MANY_CLASSES = 256


def measure_step(
    model, inputs, optimizer=None, advance=lambda text: None, allow=LEVERS
):
    """Return the `MeasuredStep` of a model.

    Args:
        model: A Keras model.
        inputs: Nested structure of tensors.
        optimizer: Keras optimizer, its name, or `None` for the model's.
        advance: Function that is told what is done.
        allow: Tuple of the levers that are to be computed from it.
    """
    check_built(model)
    advance("The peak of a step")
    released = is_released(model)
    fn, params, batch = as_step(model, inputs)
    gradient = backend.peak_bytes(fn, params, batch, released)
    advance("Logits")
    scores = None
    if batch is not inputs:  # with labels
        scores = _scores(model, batch, gradient, released)
    costs, recomputed = [], None
    if "recompute" in allow:
        advance("Segments")
        costs, recomputed = measure_segments(model, inputs)
    others = OPTIMIZERS if "optimizer" in allow else ()
    return MeasuredStep(
        *fixed_by_optimizer(model, optimizer, advance, others),
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
        scores,
        bytes_of(largest(model.trainable_variables)) if released else 0,
    )


def check_built(model):
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' is not built, so that its variables "
            "are not known. Call it on a batch once, or start it with a "
            "`keras.Input`."
        )


def fixed_by_optimizer(model, optimizer, advance, others):
    """Return `Fixed` by the name of the optimizer, and the state by variable.

    "as it is" stands for the one that is given, or the model's.
    """
    optimizer = optimizer or getattr(model, "optimizer", None)
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    advance("Optimizers")
    own, states = fixed_bytes(model, optimizer)
    fixed = {"as it is": own}
    for name in others:
        fixed[name], _ = fixed_bytes(model, getattr(optimizers, name)())
    return fixed, states


def _logits(model, inputs):
    """Bytes of scores of tokens by classes; 0 if they are in chunks already."""
    if ChunkedTraining.of(model):
        return 0
    return sum(
        bytes_of(x)
        for x in keras.tree.flatten(output_specs(model, inputs))
        if len(x.shape) == 3 and x.shape[-1] >= MANY_CLASSES
    )


def _scores(model, batch, gradient, released):
    """Bytes that logits and their loss add, or `None`."""
    inputs, _ = batch
    fn, params = as_function(
        model, functools.partial(hidden_states, model, batch)
    )
    try:
        peak = backend.peak_bytes(fn, params, inputs, released)
    except ValueError:
        return None  # it does not end in a layer that makes logits
    return max(gradient - peak, 0)
