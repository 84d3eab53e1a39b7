import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers


@keras.saving.register_keras_serializable(package="keras_efficient")
class SelfTuningDense(keras.layers.Layer):
    """A dense layer whose weights answer to hyperparameters.

    `keras_efficient.models.SelfTuning` tunes these while it trains. It has
    twice the weights of a dense layer, and takes twice the time.

    With one row h of hyperparameters an example, x of that example becomes

    ```
    y = s (W x + b) + (V h)_w * (W_h x) + (V h)_b * b_h
    ```

    which is a dense layer whose kernel row i is s W_i + (V h)_{w,i} W_{h,i}:
    near the best one for each h, once it is trained. With `decay` the layer
    adds, in training, the penalty of its kernel K(h) to the losses,

    ```
    mean over examples of  exp(h[decay]) |K(h)|^2
    ```

    Args:
        units: Positive integer.
        activation: As for `keras.layers.Dense`. Defaults to `None`.
        use_bias: Boolean. Defaults to `True`.
        decay: The index in h of the logarithm of the factor of the penalty.
            Defaults to `None`, no penalty.
        kernel_initializer: Of W and W_h. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List `[x, h]` of tensors of shapes `(batch, ..., features)` and
            `(batch, hyperparameters)`.
        training: Boolean.

    Returns:
        Tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: `units` or `decay` is outside its range.

    Example:

    ```python
    layer = keras_efficient.layers.SelfTuningDense(4, decay=0)
    x, h = keras.random.normal((2, 8)), keras.ops.zeros((2, 1))
    print(layer([x, h]).shape)
    ```

    Reference:
        - [MacKay et al., 2019](https://arxiv.org/abs/1903.03088)
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        decay=None,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_integers(1, units=units)
        self.units, self.use_bias, self.decay = units, use_bias, decay
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        x, h = input_shape
        if self.decay is not None and not 0 <= self.decay < h[-1]:
            raise ValueError(
                "`decay` must be the index of a hyperparameter. Received: "
                f"decay={self.decay}, {h[-1]} hyperparameters"
            )

        def kernel(name):
            return self.add_weight(
                name=name,
                shape=(x[-1], self.units),
                initializer=keras.initializers.get(
                    keras.initializers.serialize(self.kernel_initializer)
                ),
            )

        self.kernel = kernel("kernel")
        self.response_kernel = kernel("response_kernel")
        self.scale = self.add_weight(
            name="scale", shape=(self.units,), initializer="ones"
        )
        self.kernel_gate = self._gate("kernel_gate", h[-1])
        if self.use_bias:
            self.bias, self.response_bias = (
                self.add_weight(
                    name=name, shape=(self.units,), initializer="zeros"
                )
                for name in ("bias", "response_bias")
            )
            self.bias_gate = self._gate("bias_gate", h[-1])

    def _gate(self, name, size):
        return self.add_weight(
            name=name,
            shape=(size, self.units),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
        )

    def call(self, inputs, training=False):
        x, h = inputs
        gate = ops.matmul(h, self.kernel_gate)
        wide = (-1, *(1,) * (len(x.shape) - 2), self.units)
        y = self.scale * ops.matmul(x, self.kernel)
        y = y + ops.reshape(gate, wide) * ops.matmul(x, self.response_kernel)
        if self.use_bias:
            shift = ops.matmul(h, self.bias_gate) * self.response_bias
            y = y + self.scale * self.bias + ops.reshape(shift, wide)
        if training and self.decay is not None:
            self.add_loss(self._penalty(h[:, self.decay], gate))
        return self.activation(y)

    def _penalty(self, log_factor, gate):
        plain = self.scale * self.kernel
        answer = ops.convert_to_tensor(self.response_kernel)
        square = (
            ops.sum(ops.square(plain), 0)
            + 2 * gate * ops.sum(plain * answer, 0)
            + ops.square(gate) * ops.sum(ops.square(answer), 0)
        )
        square = ops.sum(ops.cast(square, "float32"), -1)
        return ops.mean(ops.exp(ops.cast(log_factor, "float32")) * square)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "decay": self.decay,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }
