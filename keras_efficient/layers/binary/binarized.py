import math

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.core.base_reparametrized import BaseReparametrized
from keras_efficient.layers.core.base_reparametrized import kernel_of
from keras_efficient.ops.binarize import binarize

ESTIMATORS = ("ste", "reste", "biper")
SCALES = ("tensor", "filter", "learned")
# ReSTE's exponent at the end.
LAST_EXPONENT = 3.0


@keras.saving.register_keras_serializable(package="keras_efficient")
class Binarized(BaseReparametrized):
    """Train a layer whose weights have two values, `-scale` and `scale`.

    The trained network takes one bit a weight, by `packed_kernel()`; training
    keeps the kernel in full and is no cheaper than without.

    ```
    ste    scale sign(w), gradient where |w| <= 1
    reste  scale sign(w), gradient of |w|^(1 / o), whose o rises from 1 to 3:
           o = 1 + 2 (1 - cos(pi t / (2 steps))) for the step t
    biper  scale sign(sin(frequency w)), gradient of the sine; for the first
           `steps` training steps the sine itself, which is not binary
    ```

    Inference is always binary, so that with BiPer it is another network before
    `steps` are over. Leave the first and the last layer of a network as they
    are.

    Args:
        layer: A `keras.layers.Layer` with a kernel: `Dense`, a convolution.
        estimator: `"ste"`, `"reste"` or `"biper"`. Defaults to `"reste"`.
        scale: `"tensor"`, the mean of `|w|`, `"filter"`, that of each filter,
            or `"learned"`, a trained number for each filter. Defaults to
            `None`: `"learned"` for BiPer, else `"tensor"`.
        steps: Integer, training steps of the schedule. Defaults to `1000`.
        frequency: Float, of BiPer's sine. Defaults to `20.0`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What `layer` is called on.
        training: Python bool.

    Returns:
        What `layer` returns.

    Raises:
        ValueError: `estimator` or `scale` is none of these, `layer` has no
            kernel or computes with another one.

    Example:

    ```python
    layer = keras_efficient.layers.Binarized(keras.layers.Dense(8))
    y = layer(keras.random.normal((2, 16)))
    bits, scale = layer.packed_kernel()
    ```

    Deviations: `sign(0)` is 1. BiPer's learned scale starts at
    `1 / sqrt(inputs of a filter)`, which keeps the variance, not at random.
    Its penalty on `sin^2` is left out: as its code adds it to the loss, it
    pulls away from the two values.

    Reference:
        - [Wu et al., 2023](https://arxiv.org/abs/2308.06689) (ReSTE)
        - [Vargas et al., 2024](https://arxiv.org/abs/2404.01278) (BiPer)
    """

    def __init__(
        self,
        layer,
        estimator="reste",
        scale=None,
        steps=1000,
        frequency=20.0,
        **kwargs,
    ):
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"`estimator` must be one of {ESTIMATORS}. Received: "
                f"estimator={estimator!r}"
            )
        if scale is None:
            scale = "learned" if estimator == "biper" else "tensor"
        if scale not in SCALES:
            raise ValueError(
                f"`scale` must be one of {SCALES}. Received: scale={scale!r}"
            )
        check_integers(1, steps=steps)
        check_numbers("(0, inf)", frequency=frequency)
        super().__init__(layer, **kwargs)
        self.estimator = estimator
        self.scale = scale
        self.steps = steps
        self.frequency = frequency

    def build_transform(self, shape):
        kind = self.layer.__class__.__name__
        inside = len(shape) - (2 if kind.startswith("Depthwise") else 1)
        # All axes of one filter.
        self.filter_axes = tuple(range(inside))
        if self.scale == "learned":
            inputs = math.prod(shape[:inside])
            self.filter_scale = self.add_weight(
                name="scale",
                shape=shape[inside:],
                initializer=keras.initializers.Constant(1 / math.sqrt(inputs)),
            )
        if self.estimator != "ste":
            self.step = self.add_weight(
                name="step",
                shape=(),
                initializer="zeros",
                dtype="int32",
                trainable=False,
            )

    def transform_kernel(self, kernel, training):
        return self._scale(kernel) * self._signs(kernel, training)

    def _scale(self, kernel):
        if self.scale == "learned":
            return ops.cast(self.filter_scale, kernel.dtype)
        axes = self.filter_axes if self.scale == "filter" else None
        return ops.mean(ops.abs(kernel), axes, keepdims=True)

    def _signs(self, kernel, training):
        if self.estimator == "ste":
            return binarize(kernel, "ste")
        part = ops.cast(self.step, kernel.dtype) / self.steps
        if training:
            self.step.assign(self.step + 1)
        if self.estimator == "reste":
            angle = ops.minimum(part, 1.0) * math.pi / 2
            exponent = 1.0 + (1.0 - ops.cos(angle)) * (LAST_EXPONENT - 1.0)
            return binarize(kernel, "reste", exponent)
        sine = ops.sin(self.frequency * kernel)
        binary = binarize(sine, "identity")
        return ops.where(part < 1.0, sine, binary) if training else binary

    def packed_kernel(self):
        """Return the binary kernel in one bit a weight.

        Returns:
            `(bits, scale)`: an array of uint8, `numpy.packbits` of the
            flattened kernel, 1 for `scale` and 0 for `-scale`, and an array
            that multiplies the kernel's shape.
        """
        kernel = ops.convert_to_numpy(self.transformed())
        value = ops.convert_to_tensor(kernel_of(self.layer))
        scale = ops.convert_to_numpy(self._scale(value))
        return np.packbits((kernel * np.sign(scale) >= 0).ravel()), scale

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "scale": self.scale,
            "steps": self.steps,
            "frequency": self.frequency,
        }
