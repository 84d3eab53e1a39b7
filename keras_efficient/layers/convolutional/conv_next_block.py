import keras

from keras_efficient.layers.convolutional.channel_normalization import (
    ChannelNormalization,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class ConvNeXtBlock(keras.layers.Layer):
    """Run a ConvNeXt block: depthwise, normalize, widen, narrow, add.

    ```
    y = x + scale conv1(gelu(conv1(norm(depthwise_conv_k(x)))))
    ```

    Args:
        kernel_size: Integer, of the depthwise convolution. Defaults to `7`.
        expansion: Integer, channels between the last two convolutions as a
            multiple of those of the input. Defaults to `4`.
        layer_scale: Float, the initial value of `scale`, one number for each
            channel. Defaults to `1e-6`.
        drop_rate: Float, with which an example skips the block in training
            (stochastic depth). Defaults to `0`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        mixer: `"depthwise"`, or `"max"` for the maximum over each window in
            the place of the depthwise convolution, which has no parameters.
            Defaults to `"depthwise"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch, height, width, channels)`, or
            `(batch, channels, height, width)`.
        training: Python bool.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `mixer` is none of the two.

    Example:

    ```python
    layer = keras_efficient.layers.ConvNeXtBlock(drop_rate=0.1)
    y = layer(keras.random.normal((2, 8, 8, 16)))
    ```

    Reference:
        - [Liu et al., 2022](https://arxiv.org/abs/2201.03545)
        - [Han et al., 2022](https://arxiv.org/abs/2202.02777)
          (`mixer="max"`)
    """

    def __init__(
        self,
        kernel_size=7,
        expansion=4,
        layer_scale=1e-6,
        drop_rate=0.0,
        data_format=None,
        mixer="depthwise",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.expansion = expansion
        self.layer_scale = layer_scale
        self.drop_rate = drop_rate
        if mixer not in ("depthwise", "max"):
            raise ValueError(
                '`mixer` must be "depthwise" or "max". Received: '
                f"mixer={mixer!r}"
            )
        self.mixer = mixer
        self.data_format = data_format or keras.config.image_data_format()

    def build(self, input_shape):
        axis = -1 if self.data_format == "channels_last" else 1
        channels = input_shape[axis]
        wide = list(input_shape)
        wide[axis] = channels * self.expansion
        shared = {"dtype": self.dtype_policy}
        conv = {
            "kernel_initializer": keras.initializers.RandomNormal(0, 0.02),
            "data_format": self.data_format,
            **shared,
        }
        if self.mixer == "max":
            self.depthwise = keras.layers.MaxPooling2D(
                self.kernel_size,
                1,
                "same",
                data_format=self.data_format,
                **shared,
            )
        else:
            self.depthwise = keras.layers.DepthwiseConv2D(
                self.kernel_size,
                padding="same",
                depthwise_initializer=keras.initializers.RandomNormal(0, 0.02),
                data_format=self.data_format,
                **shared,
            )
        self.norm = ChannelNormalization(self.data_format, **shared)
        self.widen = keras.layers.Conv2D(
            wide[axis], 1, activation="gelu", **conv
        )
        self.narrow = keras.layers.Conv2D(channels, 1, **conv)
        self.drop = keras.layers.Dropout(
            self.drop_rate, (None, 1, 1, 1), **shared
        )
        for layer in (self.depthwise, self.norm, self.widen, self.drop):
            layer.build(input_shape)
        self.narrow.build(tuple(wide))
        self.scale = self.add_weight(
            name="scale",
            shape=(channels,) if axis == -1 else (channels, 1, 1),
            initializer=keras.initializers.Constant(self.layer_scale),
        )

    def call(self, inputs, training=None):
        x = self.norm(self.depthwise(inputs))
        x = self.scale * self.narrow(self.widen(x))
        return inputs + self.drop(x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "expansion": self.expansion,
            "layer_scale": self.layer_scale,
            "drop_rate": self.drop_rate,
            "mixer": self.mixer,
            "data_format": self.data_format,
        }
