import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.normalization.base_normalization import (
    BaseNormalization,
)
from keras_efficient.layers.normalization.base_normalization import (
    batch_and_places,
)
from keras_efficient.layers.normalization.base_normalization import moments
from keras_efficient.layers.normalization.base_normalization import places


@keras.saving.register_keras_serializable(package="keras_efficient")
class InstanceBatchNormalization(BaseNormalization):
    """Normalize some channels by example and the others by batch.

    It makes networks less sensitive to how pictures look, such as colour and
    contrast; it saves neither memory nor time.

    The first `ratio` of the channels has the statistics of each example over
    its places, the others those of the batch, or moving averages in inference.
    `ratio=0.5` behind the first convolution of residual branches is IBN-a;
    `ratio=1.0` behind the addition of the first stages is IBN-b.

    Args:
        ratio: Float from 0 to 1, the part of instance normalization. The
            number of its channels is rounded down. Defaults to `0.5`.
        axis: Integer, that of the channels. Defaults to `-1`.
        epsilon: Float. Defaults to `1e-3`.
        momentum: Float, the part of moving statistics that stays in a step.
            Defaults to `0.99`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`, with places.
        mask: Boolean tensor, true where positions count for statistics.
        training: Python bool.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `ratio` is outside its range, or the input has no places.

    Example:

    ```python
    layer = keras_efficient.layers.InstanceBatchNormalization()
    y = layer(keras.random.normal((2, 8, 8, 16)))
    ```

    Reference:
        - [Pan et al., 2018](https://arxiv.org/abs/1807.09441)
    """

    def __init__(
        self, ratio=0.5, axis=-1, epsilon=1e-3, momentum=0.99, **kwargs
    ):
        check_numbers("[0, 1]", ratio=ratio)
        super().__init__(axis, epsilon, momentum, **kwargs)
        self.ratio = ratio

    def build(self, input_shape):
        if len(input_shape) < 3:
            raise ValueError(
                "Instance normalization needs places to average over, so an "
                "input of three axes or more. Received: "
                f"input_shape={input_shape}"
            )
        super().build(input_shape)

    def build_statistics(self):
        self.instance_channels = int(self.channels * self.ratio)
        rest = self.channels - self.instance_channels
        if rest:
            self.moving_mean = self.channel_state("moving_mean", "zeros", rest)
            self.moving_variance = self.channel_state(
                "moving_variance", "ones", rest
            )

    def normalize(self, x, mask, training):
        half = self.instance_channels
        parts = []
        if half:
            first = x[..., :half]
            statistics = moments(first, places(x), mask)
            parts.append(
                self.affine(
                    first, *statistics, self.gamma[:half], self.beta[:half]
                )
            )
        if half < self.channels:
            rest = x[..., half:]
            statistics = self._of_batch(rest, mask, training)
            parts.append(
                self.affine(
                    rest, *statistics, self.gamma[half:], self.beta[half:]
                )
            )
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, -1)

    def _of_batch(self, x, mask, training):
        moving = self.moving_mean, self.moving_variance
        if not training:
            return [ops.convert_to_tensor(variable) for variable in moving]
        statistics = moments(x, batch_and_places(x), mask)
        for variable, value in zip(moving, statistics):
            self.move(variable, value)
        return statistics

    def get_config(self):
        return {**super().get_config(), "ratio": self.ratio}
