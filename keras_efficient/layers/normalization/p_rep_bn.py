import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.core.base_reparametrized import kernel_of


@keras.saving.register_keras_serializable(package="keras_efficient")
class PRepBN(keras.layers.Layer):
    """Turn a LayerNormalization into an affine map while a network trains.

    The map can be folded into the `Dense` behind it, so that inference has no
    normalization; training is no cheaper than before, and until `lambda` is 0
    inference is another network than the one that trains.

    ```
    training   y = lambda LayerNorm(x) + (1 - lambda) (BatchNorm(x) + a x)
    inference  y = BatchNorm(x) + a x
    lambda     1 for `warmup_steps`, then down to 0 in `decay_steps`, a line
    ```

    Args:
        decay_steps: Integer, training steps.
        warmup_steps: Integer, training steps. Defaults to `0`.
        epsilon: Float, of both normalizations. Defaults to `1e-5`.
        momentum: Float, of the moving statistics. Defaults to `0.9`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`.
        mask: Boolean tensor, true where positions count for statistics.
        training: Python bool.

    Returns:
        Tensor of the same shape.

    Example:

    ```python
    norm = keras_efficient.layers.PRepBN(decay_steps=1000)
    dense = keras.layers.Dense(8)
    x = keras.random.normal((2, 10, 16))
    y = dense(norm(x))
    one = norm.fuse_into(dense)  # one(x) is y
    ```

    Deviation: BatchNorm's moving statistics follow the data in the warm-up,
    too.

    Reference:
        - [Guo et al., 2024](https://arxiv.org/abs/2405.11582)
    """

    def __init__(
        self,
        decay_steps,
        warmup_steps=0,
        epsilon=1e-5,
        momentum=0.9,
        **kwargs,
    ):
        check_integers(1, decay_steps=decay_steps)
        check_integers(0, warmup_steps=warmup_steps)
        check_numbers("(0, inf)", epsilon=epsilon)
        check_numbers("[0, 1]", momentum=momentum)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.epsilon = epsilon
        self.momentum = momentum

    def build(self, input_shape):
        shared = {"epsilon": self.epsilon, "dtype": self.dtype_policy}
        self.layer_norm = keras.layers.LayerNormalization(
            name="layer_norm", **shared
        )
        self.batch_norm = keras.layers.BatchNormalization(
            momentum=self.momentum, name="batch_norm", **shared
        )
        self.layer_norm.build(input_shape)
        self.batch_norm.build(input_shape)
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.step = self.add_weight(
            name="step",
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
        )

    def call(self, inputs, mask=None, training=None):
        y = self.batch_norm(inputs, training=training, mask=mask)
        y = y + self.a * inputs
        if not training:
            return y
        part = ops.cast(self.layer_norm_part(), y.dtype)
        self.step.assign(self.step + 1)
        return part * self.layer_norm(inputs) + (1 - part) * y

    def layer_norm_part(self):
        """The part of LayerNormalization in the next training step."""
        left = self.decay_steps + self.warmup_steps - self.step
        part = ops.cast(left, "float32") / self.decay_steps
        return ops.clip(part, 0.0, 1.0)

    def fuse_into(self, dense):
        """Return a `Dense` that does what this layer and `dense` do.

        Args:
            dense: A built `keras.layers.Dense` that reads this layer's output.

        Returns:
            A new `keras.layers.Dense`: `fused(x)` is `dense(self(x))` in
            inference. This layer and `dense` stay as they are.

        Raises:
            ValueError: the kernel of `dense` does not fit, one of both is not
                built, or `dense` has LoRA or is quantized.
        """
        if not (self.built and getattr(dense, "built", False)):
            raise ValueError(
                "Both layers must be built before they become one. Received: "
                f"{self} and {dense}"
            )
        norm = self.batch_norm
        kernel = ops.convert_to_numpy(kernel_of(dense)).astype("float64")
        gamma, beta, mean, variance, a = (
            ops.convert_to_numpy(v).astype("float64")
            for v in (
                *(norm.gamma, norm.beta),
                *(norm.moving_mean, norm.moving_variance, self.a),
            )
        )
        if kernel.shape[0] != gamma.size:
            raise ValueError(
                "`dense` must take as many channels as this layer returns. "
                f"Received: a kernel of shape {kernel.shape}, {gamma.size} "
                "channels"
            )
        scale = gamma / np.sqrt(variance + self.epsilon)
        bias = (beta - mean * scale) @ kernel
        if dense.use_bias:
            bias = bias + ops.convert_to_numpy(dense.bias)
        config = {**dense.get_config(), "use_bias": True}
        config["name"] = f"{dense.name}_fused"
        fused = keras.layers.Dense.from_config(config)
        fused.build((None, kernel.shape[0]))
        fused.set_weights([(scale + a)[:, None] * kernel, bias])
        return fused

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "decay_steps": self.decay_steps,
            "warmup_steps": self.warmup_steps,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
        }
