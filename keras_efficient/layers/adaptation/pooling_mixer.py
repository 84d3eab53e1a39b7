import keras

from keras_efficient.backend.arguments import check_integers


@keras.saving.register_keras_serializable(package="keras_efficient")
class PoolingMixer(keras.layers.Layer):
    """Mix places by a maximum over windows, which has no parameters.

    It takes the place of a spatial convolution or of attention over a grid of
    patches; it sees no further than its window.

    ```
    y = dense(gelu(max_pool(gelu(dense(x)))))
    ```

    Args:
        expansion: Integer, channels inside as a multiple of those of the
            input. Defaults to `3`.
        pool_size: Integer, rows and columns of the window. Defaults to `3`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, height, width, channels)`, or
            `(batch, channels, height, width)`.

    Returns:
        Tensor of the same shape.

    Example:

    ```python
    layer = keras_efficient.layers.PoolingMixer()
    y = layer(keras.random.normal((2, 8, 8, 16)))
    ```

    Reference:
        - [Han et al., 2022](https://arxiv.org/abs/2202.02777)
    """

    def __init__(self, expansion=3, pool_size=3, data_format=None, **kwargs):
        check_integers(1, expansion=expansion, pool_size=pool_size)
        super().__init__(**kwargs)
        self.expansion = expansion
        self.pool_size = pool_size
        self.data_format = data_format or keras.config.image_data_format()

    def build(self, input_shape):
        axis = -1 if self.data_format == "channels_last" else 1
        channels = input_shape[axis]
        shared = {"data_format": self.data_format, "dtype": self.dtype_policy}
        self.widen = keras.layers.Conv2D(
            channels * self.expansion,
            1,
            activation="gelu",
            name="widen",
            **shared,
        )
        self.pool = keras.layers.MaxPooling2D(
            self.pool_size, 1, "same", name="pool", **shared
        )
        self.gelu = keras.layers.Activation("gelu", dtype=self.dtype_policy)
        self.narrow = keras.layers.Conv2D(channels, 1, name="narrow", **shared)
        self.widen.build(input_shape)
        wide = list(input_shape)
        wide[axis] = channels * self.expansion
        self.narrow.build(tuple(wide))

    def call(self, inputs):
        return self.narrow(self.gelu(self.pool(self.widen(inputs))))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "expansion": self.expansion,
            "pool_size": self.pool_size,
            "data_format": self.data_format,
        }
