import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class DepthwiseConv3D(keras.layers.Layer):
    """Convolve each channel of a volume with a kernel of its own.

    Keras has this for one and two dimensions. Here a kernel of depth k is
    taken apart into k kernels of two dimensions:

    ```
    y[d] = sum_t w[t] * x[s d + t - left]      (* within a plane, stride s)
    ```

    This is faster on a CPU than `keras.layers.Conv3D` with as many groups as
    channels (`guides/benchmarks.md`). For its backward pass it keeps its
    input, as any convolution.

    Args:
        kernel_size: Integer, along each axis. Defaults to `3`.
        strides: Integer, along each axis. Defaults to `1`.
        use_bias: Boolean. Defaults to `True`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        depthwise_initializer: Initializer of the kernel, of shape
            `(kernel_size, kernel_size, kernel_size, channels, 1)`. Defaults
            to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch, depth, height, width, channels)`, or
            `(batch, channels, depth, height, width)`. For strides above 1 the
            depth has to be known.

    Returns:
        Tensor of the same rank and channels, padded as by `padding="same"`.

    Example:

    ```python
    layer = keras_efficient.layers.DepthwiseConv3D(3)
    y = layer(keras.random.normal((2, 8, 8, 8, 4)))
    ```
    """

    def __init__(
        self,
        kernel_size=3,
        strides=1,
        use_bias=True,
        data_format=None,
        depthwise_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.strides = strides
        self.use_bias = use_bias
        self.data_format = data_format or keras.config.image_data_format()
        self.depthwise_initializer = keras.initializers.get(
            depthwise_initializer
        )

    def build(self, input_shape):
        last = self.data_format == "channels_last"
        channels = input_shape[-1 if last else 1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size,) * 3 + (channels, 1),
            initializer=self.depthwise_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(channels,), initializer="zeros"
            )

    def call(self, inputs):
        x, strides = inputs, self.strides
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 2, 3, 4, 1))
        depth, *plane = ops.shape(x)[1:]
        planes = ops.reshape(x, (-1, *plane))
        # As for `padding="same"` along the other axes.
        rest = depth % strides if strides > 1 else 0
        padding = max(self.kernel_size - (rest or strides), 0)
        left = padding // 2
        length = -(-depth // strides)
        outputs = 0
        for t in range(self.kernel_size):
            y = ops.depthwise_conv(
                planes, self.kernel[t], strides, "same", "channels_last"
            )
            y = ops.reshape(y, (-1, depth, *ops.shape(y)[1:]))
            y = ops.pad(y, [(0, 0), (left, padding - left)] + [(0, 0)] * 3)
            end = t + (length - 1) * strides + 1
            outputs = outputs + y[:, t:end:strides]
        if self.use_bias:
            outputs = outputs + self.bias
        if self.data_format == "channels_first":
            outputs = ops.transpose(outputs, (0, 4, 1, 2, 3))
        return outputs

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape
        last = self.data_format == "channels_last"
        channels = shape.pop(-1 if last else 0)
        sizes = [n and -(-n // self.strides) for n in shape]
        if last:
            return (batch, *sizes, channels)
        return (batch, channels, *sizes)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "use_bias": self.use_bias,
            "data_format": self.data_format,
            "depthwise_initializer": keras.initializers.serialize(
                self.depthwise_initializer
            ),
        }
