import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class GradientReversal(keras.layers.Layer):
    """Pass tensors on and turn their gradients round.

    It trains features to tell nothing to a head behind it, as of the domain
    that an example is from; it saves no memory, and does not say how strong
    the reversal has to be.

    ```
    y = x        dx = -factor dy
    ```

    With `ramp_steps` the factor grows in training from 0 to `factor`, at the
    progress p = step / ramp_steps from 0 to 1:

    ```
    factor (2 / (1 + exp(-10 p)) - 1)
    ```

    Args:
        factor: Float. Defaults to `1.0`.
        ramp_steps: Integer, training steps, or `None` for `factor` from the
            start. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of floats of any shape.
        training: Python bool.

    Returns:
        The same values, exactly.

    Example:

    ```python
    inputs = keras.Input((8,))
    features = keras.layers.Dense(16, activation="relu")(inputs)
    label = keras.layers.Dense(3)(features)
    reversed_ = keras_efficient.layers.GradientReversal()(features)
    domain = keras.layers.Dense(1)(reversed_)
    model = keras.Model(inputs, [label, domain])
    ```

    Reference:
        - [Ganin et al., 2016](https://arxiv.org/abs/1505.07818)
    """

    def __init__(self, factor=1.0, ramp_steps=None, **kwargs):
        check_numbers("[0, inf)", factor=factor)
        if ramp_steps is not None:
            check_integers(1, ramp_steps=ramp_steps)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.factor = factor
        self.ramp_steps = ramp_steps

    def build(self, input_shape):
        if self.ramp_steps is not None:
            self.step = self.add_weight(
                name="step",
                shape=(),
                initializer="zeros",
                dtype="int32",
                trainable=False,
            )

    def call(self, inputs, training=None):
        factor = ops.cast(self._factor(training), inputs.dtype)
        x = ops.stop_gradient(inputs)
        return x + factor * (x - inputs)

    def _factor(self, training):
        if self.ramp_steps is None:
            return self.factor
        progress = ops.cast(self.step, "float32") / self.ramp_steps
        if training:
            self.step.assign(self.step + 1)
        progress = ops.minimum(progress, 1.0)
        return self.factor * (2.0 / (1.0 + ops.exp(-10.0 * progress)) - 1.0)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "factor": self.factor,
            "ramp_steps": self.ramp_steps,
        }
