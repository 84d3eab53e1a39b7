import keras
from keras import ops

from keras_efficient.layers.invertible.base_invertible_conv import (
    BaseInvertibleConv,
)
from keras_efficient.layers.invertible.invertible_dense import InvertibleDense
from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleResidual(InvertibleLayer):
    """Add a linear layer to its input, or undo it with the transpose.

    ```
    call:     y = x + F x         E = I + F
    inverse:  x = y + F^T y
    ```

    F is an `InvertibleDense` or invertible convolution without bias. The
    inverse is exact if `F + F^T + F^T F = 0`, that is, if E is orthonormal,
    which a loss on `inverse(call(x)) - x` strives for; F = 0 is a start of
    that kind (`kernel_initializer="zeros"`). Put biases and activations
    behind the block.

    For an exact inverse of any residual function use
    `keras_efficient.layers.AdditiveCoupling`.

    Args:
        layer: The layer F, with `use_bias=False` and outputs of the shape of
            its inputs.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor.

    Returns:
        A tensor of the same shape, of the block's compute dtype. F computes
        in its own.

    Raises:
        TypeError: `layer` is not one of the linear invertible layers.
        ValueError: `layer` has a bias, or changes the shape of its inputs.

    Example:

    ```python
    conv = keras_efficient.layers.InvertibleConv2D(
        3, 3, padding="same", use_bias=False, kernel_initializer="zeros"
    )
    block = keras_efficient.layers.InvertibleResidual(conv)
    x = keras.random.normal((2, 8, 8, 3))
    x_again = block.inverse(block(x))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(layer, (InvertibleDense, BaseInvertibleConv)):
            raise TypeError(
                "`layer` must be an `InvertibleDense` or an invertible "
                f"convolution. Received: {layer} (of type {type(layer)})"
            )
        if layer.use_bias:
            raise ValueError(
                "The bias of a residual branch cannot be undone by its "
                f"transpose. Received: layer={layer} with `use_bias=True`. "
                "Use `use_bias=False`, and a bias behind the block."
            )
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        output_shape = self.layer.compute_output_shape(input_shape)
        if tuple(output_shape) != tuple(input_shape):
            raise ValueError(
                "`layer` must return the shape that it gets. Received: "
                f"{self.layer}, from {tuple(input_shape)} to "
                f"{tuple(output_shape)}"
            )

    def call(self, inputs):
        x = ops.cast(inputs, self.compute_dtype)
        return x + ops.cast(self.layer(x), x.dtype)

    def linear(self, inputs):
        x = super().linear(inputs)
        return x + ops.cast(self.layer.linear(x), x.dtype)

    def adjoint(self, outputs):
        y = super().adjoint(outputs)
        return y + ops.cast(self.layer.adjoint(y), y.dtype)

    def position_matrix(self):
        matrix = self.layer.position_matrix()
        return matrix + ops.eye(matrix.shape[-1], dtype=matrix.dtype)

    def _invert(self, outputs):
        return self.adjoint(outputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
