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


@keras.saving.register_keras_serializable(package="keras_efficient")
class BatchChannelNormalization(BaseNormalization):
    """Normalize channels by statistics of the run, then groups of channels.

    ```
    mu = momentum mu + (1 - momentum) mean(x)
    s  = momentum s + (1 - momentum) mean((x - old mu)^2)
    y  = gamma (x - mu) / sqrt(s + epsilon) + beta
    z  = group_gamma (y - mean(y)) / sqrt(var(y) + epsilon) + group_beta
    ```

    The first part uses statistics that have just been moved, through which no
    gradient flows: batches of one or two images are enough. With
    `estimate=False` it is a `BatchNormalization`. The second is a group
    normalization of each image, with a gain and a bias for each group. Use it
    behind layers in `keras_efficient.layers.WeightStandardization`.

    The part of a batch in the statistics is set from outside in the authors'
    code, and not in the paper's equations: `1 - momentum` is ours.

    Args:
        groups: Integer, which divides the channels. Defaults to `32`.
        momentum: Float in [0, 1), of the statistics. Defaults to `0.99`.
        estimate: Boolean. `False` normalizes by the statistics of the batch
            in training. Defaults to `True`.
        axis: Integer, the axis of the channels. Defaults to `-1`.
        epsilon: Positive float, added to variances. Defaults to `1e-5`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch, *places, channels)`.
        mask: Boolean tensor of shape `(batch, *places)`, or of its first
            axes. What it hides does not count. Defaults to `None`.
        training: Boolean. Only then statistics are moved.

    Returns:
        Tensor of the shape and dtype of the inputs.

    Raises:
        ValueError: when it is built, if `groups` does not divide channels.

    Example:

    ```python
    layer = keras_efficient.layers.BatchChannelNormalization(groups=2)
    y = layer(keras.ops.ones((1, 5, 5, 8)), training=True)
    ```

    Reference:
        - [Qiao et al., 2019](https://arxiv.org/abs/1911.09738)
    """

    def __init__(
        self,
        groups=32,
        momentum=0.99,
        estimate=True,
        axis=-1,
        epsilon=1e-5,
        **kwargs,
    ):
        check_integers(1, groups=groups)
        super().__init__(axis, epsilon, momentum, **kwargs)
        self.groups = groups
        self.estimate = estimate

    def build_statistics(self):
        if self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                "`groups` must divide the number of channels. Received: "
                f"groups={self.groups}, {self.channels} channels"
            )
        self.group_gamma = self.channel_weight(
            "group_gamma", "ones", self.groups
        )
        self.group_beta = self.channel_weight(
            "group_beta", "zeros", self.groups
        )
        self.moving_mean = self.channel_state("moving_mean", "zeros")
        self.moving_variance = self.channel_state("moving_variance", "ones")

    def normalize(self, x, mask, training):
        y = self.affine(x, *self._statistics(x, mask, training))
        shape = ops.shape(y)
        size = self.channels // self.groups
        y = ops.reshape(y, (*shape[:-1], self.groups, size))
        # Over places and the channels of a group.
        axes = (*range(1, len(shape) - 1), len(shape))
        mean, variance = moments(y, axes, mask)
        gamma, beta = (
            ops.reshape(w, (self.groups, 1))
            for w in (self.group_gamma, self.group_beta)
        )
        return ops.reshape(self.affine(y, mean, variance, gamma, beta), shape)

    def _statistics(self, x, mask, training):
        if not training:
            return self._moving()
        axes = batch_and_places(x)
        mean, variance = moments(x, axes, mask)
        if not self.estimate:
            self.move(self.moving_mean, mean)
            self.move(self.moving_variance, variance)
            return mean, variance
        # mean((x - old)^2) is the variance and the square of what old is off.
        off = ops.reshape(mean, self.moving_mean.shape) - self.moving_mean
        square = ops.reshape(variance, off.shape) + ops.square(off)
        self.move(self.moving_mean, mean)
        self.move(self.moving_variance, square)
        return self._moving()

    def _moving(self):
        return tuple(
            ops.stop_gradient(ops.convert_to_tensor(variable))
            for variable in (self.moving_mean, self.moving_variance)
        )

    def get_config(self):
        config = {"groups": self.groups, "estimate": self.estimate}
        return {**super().get_config(), **config}
