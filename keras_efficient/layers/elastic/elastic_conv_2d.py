import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.elastic.elastic_layer import ElasticLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class ElasticConv2D(ElasticLayer):
    """A convolution that trains smaller ones inside of it (once-for-all).

    One network is trained for many widths and kernel sizes, and `export` gives
    the layer of one of them. Training takes the time and memory of the
    largest: what is not active is masked, so that shapes stay the same.

    The first `active_outputs` filters of the first `active_inputs` channels
    count. A smaller kernel is the middle of the next larger one, through a
    matrix that is learned, the same for all channels and the unit matrix at
    first:

    ```
    K_5 = M_5 middle(K_7),    K_3 = M_3 middle(K_5)
    ```

    Choose by `set_active`, before each training step by
    `keras_efficient.callbacks.SubnetworkSampling`: nothing is compiled anew.
    The padding is `"same"`, so that outputs of all kernel sizes lie on each
    other. Statistics of a BatchNormalization behind it are those of one size:
    recompute them for the one that is exported.

    Args:
        filters: Positive integer, the largest number.
        kernel_sizes: List of odd integers, from the largest down. Defaults to
            `(7, 5, 3)`.
        strides: Positive integer. Defaults to `1`.
        activation: As for `keras.layers.Conv2D`. Defaults to `None`.
        use_bias: Boolean. Defaults to `True`.
        kernel_initializer: Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, height, width, channels)`.

    Returns:
        Tensor of shape `(batch, new height, new width, filters)`.

    Raises:
        ValueError: an argument or what is to be active is outside its range.

    Example:

    ```python
    layer = keras_efficient.layers.ElasticConv2D(8)
    y = layer(keras.random.normal((2, 8, 8, 3)))
    layer.set_active(filters=4, kernel_size=3)
    small = layer.export()  # a `keras.layers.Conv2D`
    ```

    Reference:
        - [Cai et al., 2020](https://arxiv.org/abs/1908.09791)
    """

    def __init__(
        self,
        filters,
        kernel_sizes=(7, 5, 3),
        strides=1,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        sizes = tuple(kernel_sizes)
        check_integers(1, filters=filters, strides=strides)
        falls = all(a > b for a, b in zip(sizes, sizes[1:]))
        if not sizes or not falls or any(s % 2 == 0 for s in sizes):
            raise ValueError(
                "`kernel_sizes` must be odd, from the largest down. Received: "
                f"kernel_sizes={kernel_sizes}"
            )
        if not 1 <= strides <= sizes[-1]:
            raise ValueError(
                "`strides` must be from 1 to the smallest kernel size. "
                f"Received: strides={strides}"
            )
        self.filters, self.kernel_sizes, self.strides = filters, sizes, strides
        self.use_bias = use_bias
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        size, *smaller = self.kernel_sizes
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, size, input_shape[-1], self.filters),
            initializer=self.kernel_initializer,
        )
        self.transforms = [
            self.add_weight(
                name=f"transform_{k}",
                shape=(k * k, k * k),
                initializer="identity",
            )
            for k in smaller
        ]
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros"
            )
        self._build_counts(input_shape[-1], self.filters)
        self.active_kernel_size = self._count("active_kernel_size", size)

    def _kernels(self):
        """Return the kernel of each size, from the largest down."""
        kernels = [ops.convert_to_tensor(self.kernel)]
        for size, transform in zip(self.kernel_sizes[1:], self.transforms):
            kernel = kernels[-1]
            edge = (kernel.shape[0] - size) // 2
            part = slice(edge, edge + size)
            middle = kernel[part, part]
            rows = ops.reshape(middle, (size * size, -1))
            rows = ops.matmul(ops.cast(transform, rows.dtype), rows)
            kernels.append(ops.reshape(rows, middle.shape))
        return kernels

    def call(self, inputs):
        largest, *smaller = self._kernels()
        kernel = largest
        for k in smaller:
            edge = (largest.shape[0] - k.shape[0]) // 2
            room = [(edge, edge), (edge, edge), (0, 0), (0, 0)]
            is_it = ops.equal(self.active_kernel_size, k.shape[0])
            kernel = ops.where(is_it, ops.pad(k, room), kernel)
        y = ops.conv(
            inputs,
            self.masked_kernel(kernel),
            strides=self.strides,
            padding="same",
            data_format="channels_last",
        )
        if self.use_bias:
            y = y + self.masked_bias()
        return self.activation(y)

    def set_active(self, filters=None, kernel_size=None, inputs=None):
        """Choose how many filters and inputs count, and the kernel size."""
        *_, rows, columns = self.kernel.shape
        counts = range(1, columns + 1)
        self._assign("filters", self.active_outputs, filters, counts)
        sizes = self.kernel_sizes
        self._assign("kernel_size", self.active_kernel_size, kernel_size, sizes)
        self._assign("inputs", self.active_inputs, inputs, range(1, rows + 1))

    def export(self):
        """Return a `keras.layers.Conv2D` of the active size, with weights."""
        size = self._active(self.active_kernel_size)
        kernel = self._kernels()[self.kernel_sizes.index(size)]
        weights = self._sliced(kernel)
        layer = keras.layers.Conv2D(
            weights[0].shape[-1],
            size,
            strides=self.strides,
            padding="same",
            data_format="channels_last",
            activation=self.activation,
            use_bias=self.use_bias,
            name=self.name,
        )
        layer.build((None, None, None, weights[0].shape[-2]))
        layer.set_weights(weights)
        return layer

    def compute_output_shape(self, input_shape):
        batch, *places, _ = input_shape
        places = [p and -(-p // self.strides) for p in places]
        return (batch, *places, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_sizes": self.kernel_sizes,
            "strides": self.strides,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }
