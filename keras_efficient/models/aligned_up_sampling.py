import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class AlignedUpSampling2D(keras.layers.Layer):
    """Double the sizes of images, their corner pixels staying where they are.

    Along each axis of n pixels, linearly between the two next to it:

    ```
    y[i] = x[i (n - 1) / (2 n - 1)]
    ```

    `keras.layers.UpSampling2D(interpolation="bilinear")` aligns the outer
    edges of pixels instead.

    Args:
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.
    """

    def __init__(self, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.data_format = data_format or keras.config.image_data_format()

    def call(self, inputs):
        x = inputs
        for axis in self._axes():
            n = ops.shape(x)[axis]
            at = ops.arange(2 * n, dtype="float32")
            at = (
                at * ops.cast(n - 1, "float32") / ops.cast(2 * n - 1, "float32")
            )
            distance = ops.abs(at - ops.arange(n, dtype="float32")[:, None])
            weights = ops.cast(ops.relu(1 - distance), x.dtype)
            x = ops.moveaxis(x, axis, -1)
            x = ops.moveaxis(ops.matmul(x, weights), -1, axis)
        return x

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        for axis in self._axes():
            shape[axis] = shape[axis] and 2 * shape[axis]
        return tuple(shape)

    def _axes(self):
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}
