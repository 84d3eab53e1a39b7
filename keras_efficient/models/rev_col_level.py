import keras

from keras_efficient.layers.convolutional.channel_normalization import (
    ChannelNormalization,
)
from keras_efficient.layers.convolutional.conv_next_block import ConvNeXtBlock


@keras.saving.register_keras_serializable(package="keras_efficient")
class RevColLevel(keras.layers.Layer):
    """Run a level of a column of RevCol: fuse what comes in, then ConvNeXt.

    ```
    z = down(below) + sum_k up_k(above_k)
    down = norm(conv2(., strides 2))          or the identity
    up_k = nearest(norm(conv1(.)), factor_k)
    ```

    Args:
        filters: Integer.
        downsample: Boolean, whether `below` is twice as fine.
        factors: Tuple of integers, by which each `above` is coarser.
        drop_rates: Tuple of floats, of stochastic depth, one for each block.
        kernel_size: Integer, of the blocks.
        data_format: As in `keras.layers.Conv2D`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.
    """

    def __init__(
        self,
        filters,
        downsample,
        factors,
        drop_rates,
        kernel_size=3,
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.downsample = downsample
        self.factors = tuple(factors)
        self.drop_rates = tuple(drop_rates)
        self.kernel_size = kernel_size
        self.data_format = data_format or keras.config.image_data_format()

    def build(self, input_shape):
        below, *above = input_shape
        self.down = self._fuse(below, 2) if self.downsample else []
        self.up = [layer for s in above for layer in self._fuse(s, 1)]
        self.blocks = [
            ConvNeXtBlock(
                self.kernel_size,
                drop_rate=rate,
                data_format=self.data_format,
                dtype=self.dtype_policy,
            )
            for rate in self.drop_rates
        ]
        for block in self.blocks:
            block.build(self.compute_output_shape(input_shape))

    def _fuse(self, shape, size):
        conv = keras.layers.Conv2D(
            self.filters,
            size,
            strides=size,
            kernel_initializer=keras.initializers.RandomNormal(0, 0.02),
            data_format=self.data_format,
            dtype=self.dtype_policy,
        )
        norm = ChannelNormalization(self.data_format, dtype=self.dtype_policy)
        conv.build(shape)
        norm.build(conv.compute_output_shape(shape))
        return [conv, norm]

    def call(self, inputs, training=None):
        x, *above = inputs
        axes = (1, 2) if self.data_format == "channels_last" else (2, 3)
        for layer in self.down:
            x = layer(x)
        for i, (y, factor) in enumerate(zip(above, self.factors, strict=True)):
            conv, norm = self.up[2 * i : 2 * i + 2]
            y = norm(conv(y))
            for axis in axes:
                y = keras.ops.repeat(y, factor, axis=axis)
            x = x + y
        for block in self.blocks:
            x = block(x)
        return x

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape[0]
        last = self.data_format == "channels_last"
        shape.pop(-1 if last else 0)
        factor = 2 if self.downsample else 1
        sizes = [n and n // factor for n in shape]
        if last:
            return (batch, *sizes, self.filters)
        return (batch, self.filters, *sizes)

    def get_config(self):
        names = "filters downsample factors drop_rates kernel_size data_format"
        own = {name: getattr(self, name) for name in names.split()}
        return {**super().get_config(), **own}
