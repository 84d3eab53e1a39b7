"""Layers that pass gradients on and take none."""

import keras
from keras import ops

from keras_efficient.autodiff.record import values


def held_constant(layer):
    """Return a scope in which gradients flow through `layer`, not into it.

    What the layer assigns in that scope, such as statistics, is dropped.

    Args:
        layer: A built Keras layer, the only one to be called in the scope.
    """
    variables = layer.variables
    constants = map(ops.stop_gradient, values(variables))
    return keras.StatelessScope(zip(variables, constants))
