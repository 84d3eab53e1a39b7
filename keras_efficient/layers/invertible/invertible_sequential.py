import keras
from keras import ops

from keras_efficient.backend import nested
from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleSequential(InvertibleLayer):
    """Run invertible layers one after the other, or undo them in reverse.

    ```
    call:     y = f_n(... f_2(f_1(x)))
    inverse:  x = f_1^-1(f_2^-1(... f_n^-1(y)))
    ```

    Args:
        layers: List of layers with a method `inverse`: invertible layers,
            resamplings such as `InvertibleDownsampling2D`, or couplings.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What the first layer takes.

    Returns:
        What the last layer returns, in the dtype of that layer.

    Raises:
        TypeError: a layer has no `inverse`.
        ValueError: `layers` is empty.

    Example:

    ```python
    stack = keras_efficient.layers.InvertibleSequential([
        keras_efficient.layers.InvertibleDense(16),
        keras_efficient.layers.InvertibleLeakyReLU(),
        keras_efficient.layers.InvertibleDense(16),
    ])
    x = keras.random.normal((2, 16))
    x_again = stack.inverse(stack(x))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(self, layers, **kwargs):
        # Every layer casts its inputs itself, also those that take float32
        # where the policy of the stack is a mixed one.
        super().__init__(autocast=False, **kwargs)
        layers = list(layers)
        if not layers:
            raise ValueError("`layers` must hold at least one layer.")
        for layer in layers:
            if not callable(getattr(layer, "inverse", None)):
                raise TypeError(
                    "`layers` must have a method `inverse`, such as "
                    "`keras_efficient.layers.InvertibleDense`. Received: "
                    f"{layer} (of type {type(layer)})"
                )
        self.layers = layers
        self.has_exact_inverse = all(
            getattr(layer, "has_exact_inverse", True) for layer in layers
        )

    def build(self, input_shape):
        for layer in self.layers:
            if not layer.built:
                layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs):
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    def linear(self, inputs):
        x = super().linear(inputs)
        for layer in self._linear_layers():
            x = layer.linear(x)
        return x

    def adjoint(self, outputs):
        y = super().adjoint(outputs)
        for layer in reversed(self._linear_layers()):
            y = layer.adjoint(y)
        return y

    def _to_tensors(self, x):
        return nested.map_structure(ops.convert_to_tensor, x)

    def _invert(self, outputs):
        for layer in reversed(self.layers):
            outputs = layer.inverse(outputs)
        return outputs

    def log_det(self, inputs):
        """Return the sum of `log |det J|` of the layers."""
        x, total = self._standardize(inputs, "log_det"), 0.0
        for layer in self.layers:
            if hasattr(layer, "log_det"):
                x, more = layer(x), layer.log_det(x)
            else:  # a reversible layer
                x, more = layer(x, return_log_det=True)
            total = total + more
        return total

    def _linear_layers(self):
        for layer in self.layers:
            if not hasattr(layer, "adjoint"):
                raise TypeError(
                    f"Layer '{layer.name}' (of type {type(layer)}) has no "
                    "linear part with an adjoint. Measure the other layers "
                    "one by one."
                )
        return list(self.layers)

    def compute_output_shape(self, input_shape):
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def compute_output_spec(self, inputs):
        for layer in self.layers:
            inputs = layer.compute_output_spec(inputs)
        return inputs

    def compute_inverse_shape(self, output_shape):
        return inverse_shape(self, output_shape)

    def compute_inverse_spec(self, outputs):
        for layer in reversed(self.layers):
            outputs = inverse_spec(layer, outputs)
        return outputs

    def get_config(self):
        layers = map(keras.saving.serialize_keras_object, self.layers)
        return {**super().get_config(), "layers": list(layers)}

    @classmethod
    def from_config(cls, config):
        layers = map(keras.saving.deserialize_keras_object, config["layers"])
        return cls(**{**config, "layers": list(layers)})


def inverse_shape(layer, output_shape):
    """Return the shape of `layer.inverse` for this shape of outputs."""
    symbol = keras.KerasTensor(output_shape, layer.compute_dtype)
    return tuple(inverse_spec(layer, symbol).shape)


def inverse_spec(layer, outputs):
    """Return `layer.inverse` of symbolic outputs."""
    if hasattr(layer, "compute_inverse_spec"):
        return layer.compute_inverse_spec(outputs)
    return _Inversion(layer).compute_output_spec(outputs)


class _Inversion(keras.Operation):
    """The inverse as an operation, which runs on symbolic tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, outputs):
        return self.layer.inverse(outputs)
