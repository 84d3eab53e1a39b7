import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.elastic.elastic_layer import ElasticLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class ElasticDense(ElasticLayer):
    """A dense layer that trains smaller ones inside of it (once-for-all).

    One network is trained for many sizes, and `export` gives the layer of one
    of them. Training takes the time and memory of the largest: what is not
    active is masked, so that shapes stay the same.

    The first `active_units` outputs of the first `active_inputs` inputs count:

    ```
    y = activation(x (K * mask) + b * mask)
    ```

    Choose by `set_active`, before each training step by
    `keras_efficient.callbacks.SubnetworkSampling`: nothing is compiled anew.
    Inputs are masked, too, since a normalization before this layer gives
    channels that are not active its offset. Its statistics are those of one
    size: recompute them for the one that is exported.

    Args:
        units: Positive integer, the largest number of outputs.
        activation: As for `keras.layers.Dense`. Defaults to `None`.
        use_bias: Boolean. Defaults to `True`.
        kernel_initializer: Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.

    Returns:
        Tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: `units` or what is to be active is outside its range.

    Example:

    ```python
    layer = keras_efficient.layers.ElasticDense(8)
    y = layer(keras.random.normal((2, 4)))
    layer.set_active(units=3)
    small = layer.export()  # a `keras.layers.Dense` of 3 units
    ```

    Reference:
        - [Cai et al., 2020](https://arxiv.org/abs/1908.09791)
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_integers(1, units=units)
        self.units, self.use_bias = units, use_bias
        self.supports_masking = True
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units,), initializer="zeros"
            )
        self._build_counts(input_shape[-1], self.units)

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        y = ops.matmul(inputs, self.masked_kernel(kernel))
        if self.use_bias:
            y = y + self.masked_bias()
        return self.activation(y)

    def set_active(self, units=None, inputs=None):
        """Choose how many units and inputs count, the first ones of each."""
        rows, columns = self.kernel.shape
        counts = range(1, columns + 1)
        self._assign("units", self.active_outputs, units, counts)
        self._assign("inputs", self.active_inputs, inputs, range(1, rows + 1))

    def export(self):
        """Return a `keras.layers.Dense` of the active size, with weights."""
        weights = self._sliced(self.kernel)
        layer = keras.layers.Dense(
            weights[0].shape[1],
            activation=self.activation,
            use_bias=self.use_bias,
            name=self.name,
        )
        layer.build((None, weights[0].shape[0]))
        layer.set_weights(weights)
        return layer

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }
