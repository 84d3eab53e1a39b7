"""The bytes that a training step of a model takes."""

import contextlib
import functools
import math
import re
from typing import NamedTuple

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.record import values
from keras_efficient.conversion.release_gradients import is_released
from keras_efficient.models.chunked_training import ChunkedTraining
from keras_efficient.models.chunked_training import why_not_a_loss


def bytes_of(tree):
    """Count the bytes of the tensors in a nested structure, on one device.

    Other leaves, such as `None` and `True`, take none.
    """
    return sum(
        math.prod(_shape_on_a_device(leaf)) * _itemsize(leaf.dtype)
        for leaf in keras.tree.flatten(tree)
        if hasattr(leaf, "shape")
    )


def _shape_on_a_device(x):
    if isinstance(x, keras.Variable):
        x = x.value
    sharding = getattr(x, "sharding", None)  # on JAX, unless it is traced
    if hasattr(sharding, "shard_shape"):
        return sharding.shard_shape(tuple(x.shape))
    return x.shape


def _itemsize(dtype):
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits.group()) // 8 if bits else 1


class Fixed(NamedTuple):
    """Bytes that do not depend on the batch."""

    parameters: int
    gradients: int
    optimizer_state: int
    update: int  # gradients and temporaries of the update
    correction: int = 0  # of the state, what rounding to 16 bits leaves


def as_function(model, context=contextlib.nullcontext, loss=None):
    """Return a function of parameters and inputs, and the parameters.

    Args:
        model: Keras model or layer.
        context: Function that returns a context to call the model in.
        loss: Function of inputs, labels and outputs. With it the second
            argument of the function is a tuple of inputs and labels.

    Returns:
        The function, which trains nothing and returns the loss, or all that
        one may depend on; and the list of tensors that is its first argument.
    """
    # A frozen parent (`enable_lora`) says of all its variables that they are.
    trained = [v for v in model.variables if v.trainable]
    others = [v for v in model.variables if not v.trainable]
    state = values(others)

    def fn(params, batch):
        scope = keras.StatelessScope(
            zip([*trained, *others], [*params, *state]), collect_losses=True
        )
        inputs, *labels = [batch] if loss is None else batch
        with scope, context():
            outputs = model(inputs, training=True)
            backend.drop_gradients()  # as `train_step` does
            if labels:
                outputs = loss(inputs, *labels, outputs)
        return outputs, scope.losses

    return fn, values(trained)


def as_step(model, inputs):
    """Return `as_function` with the loss in it, and what it is called with.

    Scores of a large vocabulary are often most of a step, and their loss has
    several tensors of that size, or pieces of them (`chunk_loss`).

    Returns:
        The function, the list of tensors, and the inputs: with labels, where
        the model is compiled with the loss that `chunk_loss` takes.
    """
    if not getattr(model, "compiled", False) or why_not_a_loss(model.loss):
        return *as_function(model), inputs
    (outputs,) = keras.tree.flatten(output_specs(model, inputs))
    batch = inputs, ops.zeros(outputs.shape[:-1], "int32")
    chunked = ChunkedTraining.of(model)
    context = contextlib.nullcontext
    if chunked:
        context = functools.partial(chunked.within_step, batch)
    return *as_function(model, context, model.compute_loss), batch


def output_specs(model, inputs):
    """Return the shapes and dtypes of what a model makes of inputs."""
    symbols = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype), inputs
    )
    return model.compute_output_spec(symbols)


def state_bytes(optimizer, variables):
    """Return the bytes that an optimizer keeps for each variable.

    Returns:
        List of tuples: all of them, and those of corrections among them.
    """
    sizes, known = [], {}
    for variable in variables:
        key = _kind(optimizer, variable)
        if key not in known:
            made = _state(optimizer, variable)
            corrections = [v for v in made if v.name.endswith("_correction")]
            known[key] = bytes_of(made), bytes_of(corrections)
        sizes.append(known[key])
    return sizes


def _state(optimizer, variable):
    fresh = _fresh(optimizer)
    before = len(fresh.variables)
    if keras.distribution.distribution() is None:
        try:
            # Shapes alone: variables that are made in here have no values.
            with keras.StatelessScope(initialize_variables=False):
                fresh.build([variable])
            made = fresh.variables[before:]
            return [
                keras.KerasTensor(v.shape, v.dtype, name=v.name) for v in made
            ]
        except ValueError:  # it makes variables of tensors
            fresh = _fresh(optimizer)
    fresh.build([variable])
    return fresh.variables[before:]


def _kind(optimizer, variable):
    """What the state of a variable depends on."""
    # This one asks for names.
    if isinstance(optimizer, keras.optimizers.Muon):
        return variable.path
    shape = _shape_on_a_device(variable)
    return tuple(variable.shape), tuple(shape), str(variable.dtype)


def update_bytes(optimizer, variables):
    """Measure gradients and temporaries of an update.

    Returns:
        Integer; 0 where the update is within the program of the step.
    """

    def prepare():
        zeros = [ops.zeros(v.shape, v.dtype) for v in variables]
        copies = [
            keras.Variable(zero, name=v.name)
            for zero, v in zip(zeros, variables)
        ]
        fresh = _fresh(optimizer)
        fresh.build(copies)
        values = [v.value for v in (*copies, *fresh.variables)]
        return lambda: fresh.apply(zeros, copies), (zeros, values)

    temporary = backend.update_bytes(prepare)
    return 0 if temporary is None else bytes_of(variables) + temporary


def _fresh(optimizer):
    return type(optimizer).from_config(optimizer.get_config())


def fixed_bytes(model, optimizer):
    """Return the `Fixed` bytes of a model, and the state by variable."""
    variables = model.trainable_variables
    states, corrections = [0 for _ in variables], [0]
    update = 0
    if optimizer is not None and variables:
        states, corrections = zip(*state_bytes(optimizer, variables))
        at_once = [largest(variables)] if is_released(model) else variables
        update = update_bytes(optimizer, at_once)
    parameters = bytes_of(model.weights), bytes_of(variables)
    sizes = sum(states), update, sum(corrections)
    return Fixed(*parameters, *sizes), list(states)


def largest(variables):
    return max(variables, key=bytes_of)


def peak_of_passes(model, inputs):
    """Measure the most bytes of the forward and the backward pass."""
    return backend.peak_bytes(*as_step(model, inputs), is_released(model))


def peak_of_step(model, inputs, fixed):
    """Measure the bytes at the peak of a training step, all included."""
    held = fixed.parameters + fixed.optimizer_state + bytes_of(inputs)
    return held + max(peak_of_passes(model, inputs), fixed.update)
