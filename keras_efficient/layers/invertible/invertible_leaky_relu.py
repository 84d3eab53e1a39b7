import math

import keras
import numpy as np
from keras import ops

from keras_efficient.layers.invertible.examples import sum_per_example
from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleLeakyReLU(InvertibleLayer):
    """Scale positive and negative values by different slopes, or undo it.

    ```
    call:     y = x * positive_slope   if x >= 0 else   x * negative_slope
    inverse:  x = y / positive_slope   if y >= 0 else   y / negative_slope
    ```

    Slopes on both sides of 1, such as 2 and 1/2, keep signals at their size
    in either direction; a slope of 0.2 alone would multiply values and
    gradients by 5 in the inverse of each layer. The closer to 1, the sooner
    kernels that do not start orthonormal become so. Slopes are applied in the
    variable dtype, and results that float16 cannot hold become its largest
    value, not infinity.

    Learned slopes are kept as their logarithms, one of each a channel, so
    that they stay positive.

    Args:
        positive_slope: Positive float. Where slopes are learned, their first
            value. Defaults to `2.0`.
        negative_slope: Positive float, likewise. Defaults to `0.5`.
        learned: Boolean. Whether the slopes are trained. Defaults to `False`.
        axis: Integer, the axis of the channels, each of which learns its own
            slopes. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: a slope is not a positive number.

    Example:

    ```python
    act = keras_efficient.layers.InvertibleLeakyReLU(learned=True)
    x = keras.random.normal((2, 8))
    x_again = act.inverse(act(x))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    has_exact_inverse = True

    def __init__(
        self,
        positive_slope=2.0,
        negative_slope=0.5,
        learned=False,
        axis=-1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, slope in (
            ("positive_slope", positive_slope),
            ("negative_slope", negative_slope),
        ):
            if not 0 < slope < math.inf:
                raise ValueError(
                    f"`{name}` must be a positive number: a slope of zero or "
                    f"less has no inverse. Received: {name}={slope}"
                )
        self.positive_slope = positive_slope
        self.negative_slope = negative_slope
        self.learned = learned
        self.axis = axis
        self.supports_masking = True

    def build(self, input_shape):
        if not self.learned:
            return
        shape = [1] * (len(input_shape) - 1)
        axis = self.axis % len(input_shape)
        shape[axis - 1] = input_shape[axis]
        if axis == 0 or shape[axis - 1] is None:
            raise ValueError(
                "`axis` must be an axis of known size and not the batch. "
                f"Received: axis={self.axis}, input_shape={input_shape}"
            )
        self.log_positive, self.log_negative = (
            self.add_weight(
                name=f"log_{name}",
                shape=shape,
                initializer=keras.initializers.Constant(math.log(slope)),
                autocast=False,
            )
            for name, slope in (
                ("positive_slope", self.positive_slope),
                ("negative_slope", self.negative_slope),
            )
        )

    def call(self, inputs):
        return self._scale(inputs, 1)

    def _invert(self, outputs):
        return self._scale(outputs, -1)

    def log_det(self, inputs):
        """Return the sum of the logarithms of the slopes."""
        x = self._standardize(inputs, "log_det")
        if self.learned:
            positive, negative = self.log_positive, self.log_negative
        else:
            positive = math.log(self.positive_slope)
            negative = math.log(self.negative_slope)
        zeros = ops.zeros_like(x)
        logs = ops.where(x >= 0, zeros + positive, zeros + negative)
        return sum_per_example(logs)

    def _scale(self, x, power):
        x = ops.cast(x, self.variable_dtype)
        if self.learned:
            positive = ops.exp(power * self.log_positive)
            negative = ops.exp(power * self.log_negative)
        else:
            positive = self.positive_slope**power
            negative = self.negative_slope**power
        x = ops.where(x >= 0, x * positive, x * negative)
        if self.compute_dtype == "float16":
            limit = float(np.finfo("float16").max)
            x = ops.clip(x, -limit, limit)
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "positive_slope": self.positive_slope,
            "negative_slope": self.negative_slope,
            "learned": self.learned,
            "axis": self.axis,
        }
