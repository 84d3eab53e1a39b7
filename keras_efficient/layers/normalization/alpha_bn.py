import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.normalization.base_normalization import (
    batch_and_places,
)
from keras_efficient.layers.normalization.base_normalization import moments
from keras_efficient.layers.normalization.source_statistics import (
    SourceStatistics,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class AlphaBN(SourceStatistics):
    """Mix the statistics of training data with those of the batch at hand.

    It is for inference on data that look different from the training data; it
    trains nothing, and its output depends on what else is in the batch.

    With a = `target_weight`, mean and variance of the training data (s) and of
    the batch (b),

    ```
    mean = (1 - a) mean_s + a mean_b      var = (1 - a) var_s + a var_b
    ```

    `utils.adapt_batch_norm(model, "alpha")` puts it in the place of every
    `BatchNormalization` of a model. It does the same in training and in
    inference.

    Args:
        target_weight: Float from 0, the training data alone, to 1, the batch
            alone. Defaults to `0.1`.
        axis: Integer, that of the channels. Defaults to `-1`.
        epsilon: Float. Defaults to `1e-3`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`.
        mask: Boolean tensor, true where positions count for statistics.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `target_weight` is outside its range.

    Example:

    ```python
    norm = keras.layers.BatchNormalization()
    x = keras.random.normal((2, 8, 8, 16))
    norm(x, training=True)
    layer = keras_efficient.layers.AlphaBN.from_batch_normalization(norm)
    y = layer(x)
    ```

    Deviations: the argument says which side it weighs, which papers do not
    agree on. The variance of the batch is the biased one, as Keras' is.

    Reference:
        - [You et al., 2021](https://arxiv.org/abs/2110.04065)
    """

    def __init__(self, target_weight=0.1, axis=-1, epsilon=1e-3, **kwargs):
        check_numbers("[0, 1]", target_weight=target_weight)
        super().__init__(axis, epsilon, **kwargs)
        self.target_weight = target_weight

    def normalize(self, x, mask, training):
        a = self.target_weight
        source = self.source_mean, self.source_variance
        mean, variance = (
            (1.0 - a) * ops.convert_to_tensor(s) + a * b
            for s, b in zip(source, moments(x, batch_and_places(x), mask))
        )
        return self.affine(x, mean, variance)

    def get_config(self):
        config = super().get_config()
        del config["momentum"]
        return {**config, "target_weight": self.target_weight}
