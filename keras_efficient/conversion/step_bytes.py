"""The bytes that a training step of a model takes."""

import contextlib
import math
import re
from typing import NamedTuple

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.record import values


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


def as_function(model, context=contextlib.nullcontext):
    """Return a function of parameters and inputs, and the parameters.

    Args:
        model: Keras model or layer.
        context: Function that returns a context to call the model in.

    Returns:
        The function, which trains nothing and returns all that a loss may
        depend on; and the list of tensors that is its first argument.
    """
    # A frozen parent (`enable_lora`) says of all its variables that they are.
    trained = [v for v in model.variables if v.trainable]
    others = [v for v in model.variables if not v.trainable]
    state = values(others)

    def fn(params, inputs):
        scope = keras.StatelessScope(
            zip([*trained, *others], [*params, *state]), collect_losses=True
        )
        with scope, context():
            outputs = model(inputs, training=True)
        return outputs, scope.losses

    return fn, values(trained)


def state_bytes(optimizer, variables):
    """Return the bytes that an optimizer keeps for each variable."""
    sizes, known = [], {}
    for variable in variables:
        key = _kind(optimizer, variable)
        if key not in known:
            known[key] = _state_bytes(optimizer, variable)
        sizes.append(known[key])
    return sizes


def _state_bytes(optimizer, variable):
    fresh = _fresh(optimizer)
    before = len(fresh.variables)
    if keras.distribution.distribution() is None:
        try:
            # Shapes alone: variables that are made in here have no values.
            with keras.StatelessScope(initialize_variables=False):
                fresh.build([variable])
            made = fresh.variables[before:]
            return bytes_of([keras.KerasTensor(v.shape, v.dtype) for v in made])
        except ValueError:  # it makes variables of tensors
            fresh = _fresh(optimizer)
    fresh.build([variable])
    return bytes_of(fresh.variables[before:])


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
    states, update = [0 for _ in variables], 0
    if optimizer is not None:
        states = state_bytes(optimizer, variables)
        update = update_bytes(optimizer, variables)
    parameters = bytes_of(model.weights), bytes_of(variables)
    return Fixed(*parameters, sum(states), update), states


def peak_of_step(model, inputs, fixed):
    """Measure the bytes at the peak of a training step, all included."""
    fn, params = as_function(model)
    held = fixed.parameters + fixed.optimizer_state + bytes_of(inputs)
    return held + max(backend.peak_bytes(fn, params, inputs), fixed.update)
