import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class SelfTuningDropout(keras.layers.Layer):
    """Drop entries at a rate that is a hyperparameter of each example.

    `keras_efficient.models.SelfTuning` tunes it while it trains, if behind it
    there is a `keras_efficient.layers.SelfTuningDense`, which learns what is
    best at each rate. It saves no memory.

    With h of an example, in training, each entry of x becomes

    ```
    rate = max_rate sigmoid(h[index])
    y = x / (1 - rate) with probability 1 - rate, else 0
    ```

    and in inference, as on tuning data, y = x. No gradient flows to h: what
    tuning data say of the rate, they say by the weights that answer to it.

    Args:
        index: Integer, the place of the rate in h. Defaults to `0`.
        max_rate: Float in (0, 1). Defaults to `0.9`.
        seed: Integer. Defaults to `None`, at random.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List `[x, h]` of tensors of shapes `(batch, ...)` and
            `(batch, hyperparameters)`.
        training: Boolean.

    Returns:
        Tensor of the shape of x.

    Raises:
        ValueError: `index` or `max_rate` is outside its range.

    Example:

    ```python
    layer = keras_efficient.layers.SelfTuningDropout()
    x, h = keras.ops.ones((2, 8)), keras.ops.zeros((2, 1))
    y = layer([x, h], training=True)  # a rate of 0.45
    ```

    Reference:
        - [MacKay et al., 2019](https://arxiv.org/abs/1903.03088)
    """

    def __init__(self, index=0, max_rate=0.9, seed=None, **kwargs):
        check_integers(0, index=index)
        check_numbers("(0, 1)", max_rate=max_rate)
        super().__init__(**kwargs)
        self.index, self.max_rate, self.seed = index, max_rate, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        _, (_, count) = input_shape
        if self.index >= count:
            raise ValueError(
                "`index` must be that of a hyperparameter. Received: "
                f"index={self.index}, {count} hyperparameters"
            )

    def call(self, inputs, training=False):
        x, h = inputs
        if not training:
            return x
        rate = ops.cast(ops.stop_gradient(h[:, self.index]), "float32")
        rate = self.max_rate * ops.sigmoid(rate)
        rate = ops.reshape(rate, (-1, *(1,) * (len(x.shape) - 1)))
        draw = keras.random.uniform(
            ops.shape(x), dtype="float32", seed=self.seed_generator
        )
        factor = ops.where(draw >= rate, 1 / (1 - rate), 0.0)
        return x * ops.cast(factor, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "index": self.index,
            "max_rate": self.max_rate,
            "seed": self.seed,
        }
