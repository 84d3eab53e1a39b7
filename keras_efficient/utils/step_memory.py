"""The bytes of a training step at its peak, as a function of the batch."""

import math
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.utils.memory_usage import GIB
from keras_efficient.utils.memory_usage import MemoryUsage
from keras_efficient.utils.optimizer_state_bytes import optimizer_state_bytes
from keras_efficient.utils.saved_activation_bytes import as_function
from keras_efficient.utils.sizes import bytes_of


class Fixed(NamedTuple):
    """Bytes that do not depend on the batch."""

    parameters: int
    gradients: int
    optimizer_state: int
    update: int  # gradients and temporaries of the update


class Line(NamedTuple):
    """Bytes of the forward and the backward pass, with the gradients."""

    fixed: float
    an_example: float

    def at(self, batch_size):
        return round(self.fixed + self.an_example * batch_size)


def measure_line(model, inputs):
    """Measure the peak of the gradient at two batch sizes."""
    fn, params = as_function(model)
    size = batch_size(inputs)
    sizes = size, size // 2 if size > 1 else 2
    peaks = [
        backend.peak_bytes(fn, params, of_size(inputs, size)) for size in sizes
    ]
    slope = (peaks[0] - peaks[1]) / (sizes[0] - sizes[1])
    return Line(peaks[0] - slope * sizes[0], slope)


def batch_size(inputs):
    return int(keras.tree.flatten(inputs)[0].shape[0])


def of_size(inputs, size):
    """Cut or repeat a batch."""

    def resize(x):
        x = ops.convert_to_numpy(x)
        return ops.convert_to_tensor(np.resize(x, (size, *x.shape[1:])))

    return keras.tree.map_structure(resize, inputs)


def usage(fixed, activations, line, inputs, budget):
    """Put together what a step takes, and the largest batch in a budget."""
    size, batch = batch_size(inputs), bytes_of(inputs)
    held = fixed.parameters + fixed.optimizer_state
    peak = held + batch + max(line.at(size), fixed.update)
    parts = sum(fixed[:3]) + batch + activations
    largest = None
    if budget:
        free = budget * GIB - held
        example = batch / size
        largest = min(
            (free - line.fixed) / (max(line.an_example, 0) + example),
            (free - fixed.update) / example,
        )
        largest = max(0, math.floor(largest))
    return MemoryUsage(
        *fixed[:3], batch, activations, peak - parts, peak, largest
    )


def state_bytes(optimizer, variables):
    """Return the bytes that an optimizer keeps for each variable."""
    sizes = []
    for variable in variables:
        # One variable after another: no more than the state of one is there.
        fresh = _fresh(optimizer)
        before = optimizer_state_bytes(fresh)
        fresh.build([variable])
        sizes.append(optimizer_state_bytes(fresh) - before)
    return sizes


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
