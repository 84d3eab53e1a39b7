import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.normalization.base_normalization import (
    BaseNormalization,
)
from keras_efficient.layers.normalization.base_normalization import (
    batch_and_places,
)
from keras_efficient.layers.normalization.base_normalization import moments
from keras_efficient.layers.normalization.base_normalization import places


@keras.saving.register_keras_serializable(package="keras_efficient")
class EvoNorm(BaseNormalization):
    """Normalize and activate in one layer, instead of a norm and a ReLU.

    It keeps more activations than `GroupNormalization` with SiLU, which have
    kernels of their own; `keras_efficient.layers.Recompute(EvoNorm())` keeps
    its input alone. Put no activation behind it.

    ```
    S0:  y = gamma x sigmoid(v x) / sqrt(var_group + epsilon) + beta
    B0:  y = gamma x / max(sqrt(var_batch + epsilon),
                           v x + sqrt(var_instance + epsilon)) + beta
    ```

    `v` is one number for each channel. S0 keeps no statistics: it does the
    same in training and in inference, at batches of one and in reversible
    blocks. B0 takes the variance of the batch in training, a moving average
    of it in inference.

    Args:
        variant: `"S0"` or `"B0"`. Defaults to `"S0"`.
        groups: Integer, of channels, for `"S0"`. Must divide the channels.
            Defaults to `32`.
        axis: Integer, that of the channels. Defaults to `-1`.
        epsilon: Float. Defaults to `None`: `1e-5` for S0, `1e-3` for B0.
        momentum: Float, the part of the moving variance that stays in a step
            of B0. Defaults to `0.9`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`.
        mask: Boolean tensor, true where positions count for statistics.
        training: Python bool.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `variant` is not one of the two, or `groups` does not
            divide the channels.

    Example:

    ```python
    layer = keras_efficient.layers.EvoNorm(groups=4)
    y = layer(keras.random.normal((2, 8, 8, 16)))
    ```

    Deviation: the moving variance is the biased one, as Keras' is.

    Reference:
        - [Liu et al., 2020](https://arxiv.org/abs/2004.02967)
    """

    def __init__(
        self,
        variant="S0",
        groups=32,
        axis=-1,
        epsilon=None,
        momentum=0.9,
        **kwargs,
    ):
        if variant not in ("S0", "B0"):
            raise ValueError(
                f'`variant` must be "S0" or "B0". Received: variant={variant!r}'
            )
        if epsilon is None:
            epsilon = 1e-5 if variant == "S0" else 1e-3
        check_integers(1, groups=groups)
        super().__init__(axis, epsilon, momentum, **kwargs)
        self.variant = variant
        self.groups = groups

    def build_statistics(self):
        self.v = self.channel_weight("v", "ones")
        if self.variant == "B0":
            self.moving_variance = self.channel_state("moving_variance", "ones")
        elif self.channels % self.groups:
            raise ValueError(
                "`groups` must divide the number of channels. Received: "
                f"groups={self.groups}, channels={self.channels}"
            )

    def normalize(self, x, mask, training):
        if self.variant == "S0":
            scale = ops.cast(ops.rsqrt(self._group_variance(x, mask)), x.dtype)
            return (
                x * ops.sigmoid(self.v * x) * (scale * self.gamma) + self.beta
            )
        if training:
            _, variance = moments(x, batch_and_places(x), mask)
            self.move(self.moving_variance, variance)
        else:
            variance = ops.convert_to_tensor(self.moving_variance)
        _, instance = moments(x, places(x), mask)
        batch = ops.cast(ops.sqrt(variance + self.epsilon), x.dtype)
        instance = ops.cast(ops.sqrt(instance + self.epsilon), x.dtype)
        below = ops.maximum(batch, self.v * x + instance)
        return self.gamma * x / below + self.beta

    def _group_variance(self, x, mask):
        """Variance and epsilon of each group, for each of its channels."""
        size = self.channels // self.groups
        grouped = ops.reshape(x, (*ops.shape(x)[:-1], self.groups, size))
        _, variance = moments(grouped, (*places(x), len(x.shape)), mask)
        variance = ops.repeat(variance, size, axis=-1)
        shape = (-1, *(1,) * len(places(x)), self.channels)
        return ops.reshape(variance, shape) + self.epsilon

    def get_config(self):
        return {
            **super().get_config(),
            "variant": self.variant,
            "groups": self.groups,
        }
