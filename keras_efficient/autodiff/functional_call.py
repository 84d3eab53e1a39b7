"""A Keras layer as a pure function of its variables."""

import keras
from keras import ops

from keras_efficient import backend


def values(variables):
    """Read `variables` as tensors, so that gradients flow back to them."""
    return [ops.convert_to_tensor(variable.value) for variable in variables]


def functional_call(layer, params, state, random, x, training):
    """Call `layer` on `x` with the given values in place of its own.

    `layer` itself stays as it is: what it would assign is dropped, since the
    forward pass has assigned it already.

    Args:
        layer: A built Keras layer.
        params: Values for `layer.trainable_variables`.
        state: Values for `layer.non_trainable_variables`, among them batch
            statistics and the states of seed generators.
        random: What `backend.random_state()` returned before the call that
            this one has to repeat.
        x: Input tensor.
        training: Python bool.

    Returns:
        `(y, losses)`: the output in the dtype of `x` and the list of the
        losses that the layer added.
    """
    variables = layer.trainable_variables + layer.non_trainable_variables
    scope = keras.StatelessScope(
        zip(variables, [*params, *state]), collect_losses=True
    )
    with backend.replay_random(random), scope:
        y = layer(x, training=training)
    return ops.cast(y, x.dtype), scope.losses
