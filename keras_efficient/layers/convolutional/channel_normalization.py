import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class ChannelNormalization(keras.layers.LayerNormalization):
    """Normalize over the channels of an image, in either data format.

    `keras.layers.LayerNormalization(axis=1)` fails on PyTorch (3.15.1).

    Args:
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        **kwargs: Arguments of `keras.layers.LayerNormalization`.
    """

    def __init__(self, data_format=None, epsilon=1e-6, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)
        self.data_format = data_format or keras.config.image_data_format()

    def build(self, input_shape):
        if self.data_format == "channels_first":
            input_shape = (input_shape[0], *input_shape[2:], input_shape[1])
        super().build(input_shape)

    def call(self, inputs):
        if self.data_format == "channels_last":
            return super().call(inputs)
        x = super().call(ops.moveaxis(inputs, 1, -1))
        return ops.moveaxis(x, -1, 1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}
