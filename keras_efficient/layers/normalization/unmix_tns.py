import math

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.normalization.base_normalization import moments
from keras_efficient.layers.normalization.base_normalization import places
from keras_efficient.layers.normalization.source_statistics import (
    SourceStatistics,
)

TEMPERATURE = 0.07
# Of the source's variance, that which is between components.
BETWEEN = 0.5


@keras.saving.register_keras_serializable(package="keras_efficient")
class UnMixTNS(SourceStatistics):
    """Normalize test data that come in order, one kind after the other.

    It is for inference on streams whose batches are alike inside, where
    statistics of a batch mislead; it trains nothing, and its state moves in
    `predict`.

    K components with means m_k and variances v_k start spread around the
    statistics of the training data. For an example with mean m and variance v
    over its places,

    ```
    p = softmax_k(cos(m, m_k) / 0.07)                           no gradient
    m'_k = (1 - p_k) m_k + p_k m        v'_k = (1 - p_k) v_k + p_k v
    mean = avg_k m'_k                   var = avg_k (v'_k + m'_k^2) - mean^2
    m_k <- m_k + M avg_batch p_k (m - m_k), and v_k in the same way
    M = 1 - momentum^(batch / max_batch_size)
    ```

    `utils.adapt_batch_norm(model, "unmix")` puts it in the place of the
    `BatchNormalization` layers of a model that see places.

    Args:
        num_components: Integer, K. Defaults to `16`.
        max_batch_size: Integer, at which `momentum` holds as it is. Defaults
            to `64`.
        seed: Integer, of the start. Defaults to `0`.
        axis: Integer, that of the channels. Defaults to `-1`.
        epsilon: Float. Defaults to `1e-3`.
        momentum: Float, the part of a component that stays. Defaults to `0.9`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`, with places.
        mask: Boolean tensor, true where positions count for statistics.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: the input has no places, or there is no component.

    Example:

    ```python
    norm = keras.layers.BatchNormalization()
    x = keras.random.normal((2, 8, 8, 16))
    norm(x, training=True)
    layer = keras_efficient.layers.UnMixTNS.from_batch_normalization(norm)
    y = layer(x)
    ```

    Reference:
        - [Tomar et al., 2024](https://arxiv.org/abs/2401.08328)
    """

    def __init__(
        self,
        num_components=16,
        max_batch_size=64,
        seed=0,
        axis=-1,
        epsilon=1e-3,
        momentum=0.9,
        **kwargs,
    ):
        check_integers(1, num_components=num_components)
        check_integers(1, max_batch_size=max_batch_size)
        check_integers(0, seed=seed)
        super().__init__(axis, epsilon, momentum, **kwargs)
        self.num_components = num_components
        self.max_batch_size = max_batch_size
        self.seed = seed

    def build(self, input_shape):
        if len(input_shape) < 3:
            raise ValueError(
                "Examples are told apart by their means over places, so the "
                "input must have three axes or more. Received: "
                f"input_shape={input_shape}"
            )
        super().build(input_shape)

    def build_statistics(self):
        super().build_statistics()
        shape = self.num_components, self.channels
        self.means, self.variances = (
            self.add_weight(
                name=name,
                shape=shape,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for name in ("means", "variances")
        )
        self.start()

    def start(self):
        """Spread the components around the statistics of the source."""
        k = self.num_components
        between = BETWEEN if k > 1 else 0.0
        noise = np.random.default_rng(self.seed).normal(size=self.means.shape)
        spread = math.sqrt(between * k / max(k - 1, 1)) * noise
        mean = ops.convert_to_numpy(self.source_mean)
        variance = ops.convert_to_numpy(self.source_variance)
        self.means.assign(mean + spread * np.sqrt(variance))
        self.variances.assign(
            np.broadcast_to((1.0 - between) * variance, self.means.shape)
        )

    def normalize(self, x, mask, training):
        axes = places(x)
        mean, variance = (
            ops.squeeze(value, axes)[:, None]
            for value in moments(x, axes, mask)
        )
        means = ops.convert_to_tensor(self.means)
        variances = ops.convert_to_tensor(self.variances)
        cosine = ops.matmul(_unit(mean), ops.transpose(_unit(means)))
        p = ops.softmax(cosine / TEMPERATURE)  # (batch, 1, components)
        p = ops.stop_gradient(ops.transpose(p, (0, 2, 1)))
        mixed = means + p * (mean - means)
        center = ops.mean(mixed, 1)
        within = ops.mean(variances + p * (variance - variances), 1)
        between = ops.mean(ops.square(mixed), 1) - ops.square(center)
        part = ops.cast(ops.shape(x)[0], "float32") / self.max_batch_size
        rate = 1.0 - ops.power(self.momentum, part)
        for moving, old, new in (
            (self.means, means, mean),
            (self.variances, variances, variance),
        ):
            step = ops.mean(p * ops.stop_gradient(new - old), 0)
            moving.assign(old + rate * step)
        shape = (-1, *(1,) * len(axes), self.channels)
        return self.affine(
            x, ops.reshape(center, shape), ops.reshape(within + between, shape)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "max_batch_size": self.max_batch_size,
            "seed": self.seed,
        }


def _unit(x):
    norm = ops.sqrt(ops.sum(ops.square(x), -1, keepdims=True))
    return x / ops.maximum(norm, 1e-12)
