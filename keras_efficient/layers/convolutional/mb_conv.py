import keras
from keras import ops

from keras_efficient.layers.convolutional.depthwise_conv_3d import (
    DepthwiseConv3D,
)

CONV = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
DEPTHWISE_CONV = {2: keras.layers.DepthwiseConv2D, 3: DepthwiseConv3D}


@keras.saving.register_keras_serializable(package="keras_efficient")
class MBConv(keras.layers.Layer):
    """Run a mobile inverted bottleneck: expand, depthwise, squeeze, project.

    ```
    u = act(norm(conv1(x)))             expansion times the channels, unless 1
    v = act(norm(depthwise_conv_k(u)))
    v = hard_sigmoid(W2 act(W1 mean(v))) v     if se_ratio > 0
    y = norm(conv1(v))
    ```

    First values are those of RevBiFPN: normal, of variance `2 / (n k^rank)`
    for n channels of the output, those of the depthwise kernel too.

    There is no skip connection: the block is meant for the additions of
    reversible layers, where `y` is added to another stream.

    Args:
        filters: Integer, channels of the output.
        kernel_size: Integer, of the depthwise convolution. Defaults to `3`.
        strides: Integer, of the same. Defaults to `1`.
        expansion: Integer, channels inside as a multiple of those of the
            input. Defaults to `2`.
        se_ratio: Float. Width of the squeeze-and-excitation as a part of the
            channels of the input; `0` for none. Defaults to `0`.
        drop_rate: Float, with which an example's whole output is dropped in
            training (stochastic depth). Defaults to `0`.
        normalization: `"batch"` (epsilon 1e-3, momentum 0.9), or
            `"instance"`, which knows nothing of other examples and so suits
            batches of one or two volumes. Defaults to `"batch"`.
        activation: Defaults to `"hard_silu"`.
        rank: Integer, `2` for images, `3` for volumes. Defaults to `2`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        padding: `"same"`, or `"symmetric"`, `(kernel_size - 1) / 2` zeros on
            either side for any strides, as PyTorch models have it: for images
            and odd sizes of kernels. The two differ for strides above 1.
            Defaults to `"same"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch, *sizes, channels)`, or
            `(batch, channels, *sizes)`.
        training: Python bool.

    Returns:
        Tensor of `filters` channels, its sizes divided by `strides` and
        rounded up.

    Raises:
        ValueError: `rank`, `normalization` or `padding` is none of its
            choices, or `"symmetric"` gets an even kernel or volumes.

    Example:

    ```python
    layer = keras_efficient.layers.MBConv(24, strides=2, se_ratio=0.25)
    y = layer(keras.random.normal((2, 16, 16, 12)))  # (2, 8, 8, 24)
    ```

    Reference:
        - [Sandler et al., 2018](https://arxiv.org/abs/1801.04381)
        - [Howard et al., 2019](https://arxiv.org/abs/1905.02244)
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        expansion=2,
        se_ratio=0.0,
        drop_rate=0.0,
        normalization="batch",
        activation="hard_silu",
        rank=2,
        data_format=None,
        padding="same",
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, allowed in (
            ("rank", rank, (2, 3)),
            ("normalization", normalization, ("batch", "instance")),
            ("padding", padding, ("same", "symmetric")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. Received: "
                    f"{name}={value!r}"
                )
        if padding == "symmetric" and (rank == 3 or kernel_size % 2 == 0):
            raise ValueError(
                "`padding='symmetric'` is for `rank=2` and an odd "
                f"`kernel_size`. Received: rank={rank}, "
                f"kernel_size={kernel_size}. Use `padding='same'`."
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.expansion = expansion
        self.se_ratio = se_ratio
        self.drop_rate = drop_rate
        self.normalization = normalization
        self.activation = keras.activations.get(activation)
        self.rank = rank
        self.data_format = data_format or keras.config.image_data_format()
        self.padding = padding
        self.channel_axis = -1 if self.data_format == "channels_last" else 1

    def build(self, input_shape):
        channels = input_shape[self.channel_axis]
        inner = channels * self.expansion
        self.expand = self.expand_norm = None
        shape = tuple(input_shape)
        if self.expansion != 1:
            self.expand, shape = self._add(self._conv(inner), shape)
            self.expand_norm, _ = self._add(self._norm(), shape)
        self.pad, padding = None, {"padding": "same"}
        if self.padding == "symmetric" and self.strides > 1:
            padding = {"padding": "valid"}
            zeros = keras.layers.ZeroPadding2D(
                self.kernel_size // 2,
                data_format=self.data_format,
                dtype=self.dtype_policy,
            )
            self.pad, shape = self._add(zeros, shape)
        self.depthwise, shape = self._add(
            DEPTHWISE_CONV[self.rank](
                self.kernel_size,
                strides=self.strides,
                use_bias=False,
                # Keras takes one channel for the output of a kernel.
                depthwise_initializer=_initializer(2.0 / inner),
                data_format=self.data_format,
                dtype=self.dtype_policy,
                **(padding if self.rank == 2 else {}),
            ),
            shape,
        )
        self.depthwise_norm, _ = self._add(self._norm(), shape)
        if self.se_ratio:
            width = max(1, int(channels * self.se_ratio))
            pooled = (shape[0], inner)
            self.squeeze, pooled = self._add(self._dense(width), pooled)
            self.excite, _ = self._add(self._dense(inner), pooled)
        self.project, shape = self._add(self._conv(self.filters), shape)
        self.project_norm, _ = self._add(self._norm(), shape)
        self.drop = None
        if self.drop_rate:
            noise = (None,) + (1,) * (self.rank + 1)
            self.drop = keras.layers.Dropout(
                self.drop_rate, noise, dtype=self.dtype_policy
            )

    def call(self, inputs, training=None):
        x = inputs
        if self.expand is not None:
            x = self.activation(self.expand_norm(self.expand(x)))
        if self.pad is not None:
            x = self.pad(x)
        x = self.activation(self.depthwise_norm(self.depthwise(x)))
        if self.se_ratio:
            x = x * self._gate(x)
        x = self.project_norm(self.project(x))
        return x if self.drop is None else self.drop(x)

    def _gate(self, x):
        axes = [a for a in range(1, self.rank + 2) if a != self._channels_at]
        gate = self.activation(self.squeeze(ops.mean(x, axis=axes)))
        gate = keras.activations.hard_sigmoid(self.excite(gate))
        return ops.expand_dims(gate, axes)

    @property
    def _channels_at(self):
        return self.channel_axis % (self.rank + 2)

    def _add(self, layer, shape):
        """Build a layer; return it and the shape of its output."""
        layer.build(shape)
        return layer, layer.compute_output_shape(shape)

    def _conv(self, filters):
        return CONV[self.rank](
            filters,
            1,
            use_bias=False,
            kernel_initializer=_initializer(),
            data_format=self.data_format,
            dtype=self.dtype_policy,
        )

    def _dense(self, units):
        return keras.layers.Dense(
            units, kernel_initializer=_initializer(), dtype=self.dtype_policy
        )

    def _norm(self):
        if self.normalization == "instance":
            return keras.layers.GroupNormalization(
                -1, axis=self.channel_axis, dtype=self.dtype_policy
            )
        return keras.layers.BatchNormalization(
            axis=self.channel_axis,
            momentum=0.9,
            epsilon=1e-3,
            dtype=self.dtype_policy,
        )

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape
        last = self.data_format == "channels_last"
        shape.pop(-1 if last else 0)
        sizes = [n and -(-n // self.strides) for n in shape]
        if last:
            return (batch, *sizes, self.filters)
        return (batch, self.filters, *sizes)

    def get_config(self):
        names = "filters kernel_size strides expansion se_ratio drop_rate"
        names += " normalization rank data_format padding"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            "activation": keras.activations.serialize(self.activation),
        }


def _initializer(scale=2.0):
    return keras.initializers.VarianceScaling(
        scale, mode="fan_out", distribution="untruncated_normal"
    )
