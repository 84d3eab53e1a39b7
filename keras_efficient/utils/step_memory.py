"""The bytes of a training step at its peak, as a function of the batch."""

import math
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_efficient.conversion.arguments import batch_size
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.conversion.step_bytes import peak_of_passes
from keras_efficient.utils.memory_usage import MemoryUsage


class Line(NamedTuple):
    """Bytes of the forward and the backward pass, with the gradients."""

    fixed: float
    an_example: float

    def at(self, batch_size):
        return round(self.fixed + self.an_example * batch_size)

    def with_slope(self, an_example, batch_size):
        """Return another line through the point at a batch size."""
        fixed = self.at(batch_size) - an_example * batch_size
        return Line(fixed, an_example)


def measure_line(model, inputs, is_needed, step=None, measure=peak_of_passes):
    """Measure the peak of the gradient at two batch sizes.

    Args:
        model: Keras model.
        inputs: Nested structure of tensors.
        is_needed: Boolean. Without, the second size is not measured: the
            gradients are taken for what does not grow.
        step: `MeasuredStep` of these inputs, or `None`.
        measure: Function of a model and inputs that returns the peak.
    """
    size = batch_size(inputs)
    peak = measure(model, inputs) if step is None else step.gradient
    if not is_needed:
        return line_through(peak, model, size)
    other = size // 2 if size > 1 else 2
    slope = (peak - measure(model, of_size(inputs, other))) / (size - other)
    return Line(peak - slope * size, slope)


def line_through(peak, model, size):
    """Return a `Line` in which nothing is fixed but the gradients."""
    fixed = min(bytes_of(model.trainable_variables), peak)
    return Line(fixed, (peak - fixed) / size)


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
        free = budget - held
        example = batch / size
        # What is kept grows with the batch, even where gradients, which do
        # not, rule the peak of this one.
        slope = max(line.an_example, activations / size)
        line = line.with_slope(slope, size)
        largest = min(
            (free - line.fixed) / (line.an_example + example),
            (free - fixed.update) / example,
        )
        largest = max(0, math.floor(largest))
    return MemoryUsage(
        *fixed[:3], batch, activations, peak - parts, peak, largest
    )
