import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.core.base_reparametrized import kernel_of

ENCODINGS = ("cos_sin", "none")


@keras.saving.register_keras_serializable(package="keras_efficient")
class HyperNetwork(keras.layers.Layer):
    """Change the weights of a `Dense` by a second input, such as settings.

    One network then serves all settings between 0 and 1; it has many more
    parameters than the layer, one kernel for each hidden unit.

    ```
    e = (cos(pi h / 2), sin(pi h / 2))          of constant norm, whatever h
    y = x (W + f(e) M) + b + f(e) m
    ```

    W and b are those of the layer, f dense layers with LeakyReLU. That W does
    not come from h, and that the norm of e is constant, keeps the size of
    activations and gradients from following that of h (magnitude-invariant
    parametrization).

    Args:
        layer: A `keras.layers.Dense`.
        hidden_units: Tuple of integers, of f. Defaults to `(128,)`.
        encoding: `"cos_sin"`, or `"none"` for e = h. Defaults to `"cos_sin"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of x, of shape `(batch, ..., width)`, and h, of shape
            `(batch, settings)` or, the same for all, `(1, settings)`, from 0
            to 1.

    Returns:
        What `layer` returns, of the shape `(batch, ..., units)`.

    Raises:
        TypeError: `layer` is not a `Dense`.
        ValueError: `encoding` is none of these, there is one input only, or
            `layer` has LoRA or is quantized.

    Example:

    ```python
    layer = keras_efficient.layers.HyperNetwork(keras.layers.Dense(4))
    x = keras.random.normal((2, 8))
    y = layer([x, keras.random.uniform((2, 3))])
    ```

    Reference:
        - [Ortiz et al., 2023](https://arxiv.org/abs/2304.07645)
    """

    def __init__(
        self, layer, hidden_units=(128,), encoding="cos_sin", **kwargs
    ):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Dense):
            raise TypeError(
                "`layer` must be a `keras.layers.Dense`. Received: "
                f"{layer} (of type {type(layer)})"
            )
        if encoding not in ENCODINGS:
            raise ValueError(
                f"`encoding` must be one of {ENCODINGS}. Received: "
                f"encoding={encoding!r}"
            )
        for units in hidden_units:
            check_integers(1, hidden_units=units)
        self.layer = layer
        self.hidden_units = tuple(hidden_units)
        self.encoding = encoding

    def build(self, input_shape):
        if len(input_shape) != 2 or not isinstance(
            input_shape[0], (list, tuple)
        ):
            raise ValueError(
                f"Layer '{self.name}' takes a list `[x, h]`. Received: "
                f"input_shape={input_shape}"
            )
        x_shape, (_, settings) = input_shape
        layer = self.layer
        if not layer.built:
            layer.build(x_shape)
        width = settings * (2 if self.encoding == "cos_sin" else 1)
        self.hidden = []
        for i, units in enumerate(self.hidden_units):
            dense = keras.layers.Dense(
                units,
                activation="leaky_relu",
                kernel_initializer=keras.initializers.VarianceScaling(
                    2.0, "fan_out"
                ),
                dtype=self.dtype_policy,
                name=f"hidden_{i}",
            )
            dense.build((None, width))
            self.hidden.append(dense)
            width = units
        inputs = x_shape[-1]
        # As large as the kernel itself, for hidden units of size one.
        normal = keras.initializers.RandomNormal(
            stddev=1 / math.sqrt(inputs * width)
        )
        self.kernel_change = self.add_weight(
            name="kernel_change",
            shape=(width, inputs * layer.units),
            initializer=normal,
        )
        if layer.use_bias:
            self.bias_change = self.add_weight(
                name="bias_change",
                shape=(width, layer.units),
                initializer="zeros",
            )

    def call(self, inputs):
        x, h = inputs
        hidden = ops.cast(h, x.dtype)
        if self.encoding == "cos_sin":
            angle = hidden * (math.pi / 2)
            hidden = ops.concatenate([ops.cos(angle), ops.sin(angle)], -1)
        for dense in self.hidden:
            hidden = dense(hidden)
        layer = self.layer
        change = ops.matmul(hidden, self.kernel_change)
        change = ops.reshape(change, (-1, x.shape[-1], layer.units))
        kernel = ops.cast(kernel_of(layer), x.dtype) + change
        flat = ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
        y = ops.matmul(flat, kernel)
        if layer.use_bias:
            bias = ops.matmul(hidden, self.bias_change)
            y = y + ops.cast(layer.bias, x.dtype) + bias[:, None]
        y = ops.reshape(y, (*ops.shape(x)[:-1], layer.units))
        return y if layer.activation is None else layer.activation(y)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.layer.units)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "hidden_units": self.hidden_units,
            "encoding": self.encoding,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
