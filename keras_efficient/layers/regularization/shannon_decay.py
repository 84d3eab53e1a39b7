import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class ShannonDecay(keras.layers.Layer):
    """Penalize what neurons vary within their two states (SHADE).

    It is to make a classifier generalize better; it changes no output and
    saves no memory. Put it on pre-activations, before the activation.

    A neuron y has a hidden state Z of 0 or 1, with p(1|y) = sigmoid(y). What it
    tells beyond that state, the variance within each, costs

    ```
    loss = factor sum_neurons sum_z mean_k p(z|y_k) (y_k - mu_z)^2

    p_z  <- momentum p_z  + (1 - momentum) mean_k p(z|y_k)
    mu_z <- momentum mu_z + (1 - momentum) mean_k p(z|y_k) y_k / p_z
    ```

    so that a neuron with two values far apart costs less than one that varies
    as much around one value. Statistics are those with the batch at hand, and
    are held constant; the gradient goes through p(z|y), too. Means are over all
    axes but the last, and over what a mask leaves. Nothing is added in
    inference.

    Args:
        factor: Non-negative float. Defaults to `1e-3`.
        momentum: Float in [0, 1). Defaults to `0.8`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.
        mask: Boolean tensor of shape `(batch, ...)`, or `None`.

    Returns:
        The inputs.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8,)),
        keras.layers.Dense(16),
        keras_efficient.layers.ShannonDecay(1e-3),
        keras.layers.ReLU(),
        keras.layers.Dense(3),
    ])
    ```

    Reference:
        - [Blot et al., 2018](https://arxiv.org/abs/1804.10988)
    """

    def __init__(self, factor=1e-3, momentum=0.8, **kwargs):
        super().__init__(**kwargs)
        check_numbers("[0, inf)", factor=factor)
        check_numbers("[0, 1)", momentum=momentum)
        self.factor, self.momentum = factor, momentum
        self.supports_masking = True

    def build(self, input_shape):
        settings = {
            "shape": (2, input_shape[-1]),
            "trainable": False,
            "dtype": "float32",
            "autocast": False,
        }
        self.probability = self.add_weight(
            name="probability",
            initializer=keras.initializers.Constant(0.5),
            **settings,
        )
        self.mean = self.add_weight(
            name="mean", initializer="zeros", **settings
        )

    def call(self, inputs, training=False, mask=None):
        if not training:
            return inputs
        y = ops.reshape(ops.cast(inputs, "float32"), (-1, inputs.shape[-1]))
        weight = ops.ones_like(y[:, :1])
        if mask is not None:
            weight = ops.reshape(ops.cast(mask, "float32"), (-1, 1))
        weight = weight / ops.maximum(ops.sum(weight), 1.0)
        p = ops.stack([ops.sigmoid(-y), ops.sigmoid(y)])
        probability, mean = self._statistics(p, y, weight)
        self.probability.assign(probability)
        self.mean.assign(mean)
        spread = p * ops.square(y - mean[:, None, :])
        self.add_loss(self.factor * ops.sum(spread * weight))
        return inputs

    def _statistics(self, p, y, weight):
        """Return the new `(p_z, mu_z)`, each of shape `(2, features)`."""
        p, y = ops.stop_gradient(p), ops.stop_gradient(y)
        m = self.momentum
        probability = m * self.probability + (1 - m) * ops.sum(p * weight, 1)
        # A state that is never taken keeps its mean.
        share = ops.sum(p * y * weight, 1) / ops.maximum(probability, 1e-6)
        return probability, m * self.mean + (1 - m) * share

    def get_config(self):
        return {
            **super().get_config(),
            "factor": self.factor,
            "momentum": self.momentum,
        }
