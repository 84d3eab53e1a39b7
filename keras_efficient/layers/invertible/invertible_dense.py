import keras
from keras import ops

from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleDense(InvertibleLayer, keras.layers.Dense):
    """Apply a dense layer, or undo it with the transpose of its own kernel.

    ```
    call:     y = x W + b
    inverse:  x = (y - b) W^T
    ```

    One kernel serves both directions, half the parameters of a pair of
    layers. The inverse is exact where W is orthonormal, as it is at the start,
    and approximate elsewhere: a loss on `inverse(call(x)) - x` drives all
    singular values of W to 1. Keep such kernels out of weight decay, which
    drives them to 0.

    With fewer units than inputs `inverse(call(x))` is a projection, with more
    `call(inverse(y))` is one; the layer warns, once, when it is built.

    Args:
        units: Positive integer, the size of the output.
        use_bias: Boolean. Whether to add b. Defaults to `True`.
        kernel_initializer: Initializer of W. Defaults to `"orthogonal"`,
            which is orthonormal on the shorter side of W.
        **kwargs: Other arguments of `keras.layers.Dense` but `activation`
            and those of LoRA and quantization.

    Call arguments:
        inputs: A tensor of shape `(batch, ..., features)`.

    Returns:
        A tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: an argument is given that has no inverse.

    Example:

    ```python
    dense = keras_efficient.layers.InvertibleDense(16)
    x = keras.random.normal((2, 16))
    x_again = dense.inverse(dense(x))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(
        self, units, use_bias=True, kernel_initializer="orthogonal", **kwargs
    ):
        refuse(self, kwargs)
        super().__init__(
            units,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )

    def build(self, input_shape):
        super().build(input_shape)
        self._warn_of_loss(input_shape[-1], self.units)

    def linear(self, inputs):
        x = super().linear(inputs)
        return ops.matmul(x, ops.cast(self.kernel, x.dtype))

    def adjoint(self, outputs):
        y = super().adjoint(outputs)
        return ops.matmul(y, ops.transpose(ops.cast(self.kernel, y.dtype)))

    def position_matrix(self):
        inputs, outputs = self.kernel.shape
        if inputs != outputs:
            raise ValueError(
                f"Layer '{self.name}' maps {inputs} features to {outputs}, so "
                "its Jacobian has no determinant. Use as many units as inputs."
            )
        return ops.convert_to_tensor(self.kernel)

    def _invert(self, outputs):
        if self.use_bias:
            outputs = outputs - ops.cast(self.bias, outputs.dtype)
        return self.adjoint(outputs)

    def compute_inverse_shape(self, output_shape):
        return (*output_shape[:-1], self.kernel.shape[0])

    def get_config(self):
        return without_refused(super().get_config())


REFUSED = (
    *("activation", "dilation_rate", "groups"),
    *("lora_rank", "lora_alpha", "quantization_config"),
)


def refuse(layer, kwargs):
    """Raise a `ValueError` for arguments of Keras that have no inverse here."""
    found = {
        name: kwargs[name] for name in REFUSED if kwargs.get(name) is not None
    }
    if found:
        raise ValueError(
            f"{type(layer).__name__} has no inverse with these arguments. "
            f"Received: {found}. Leave them out; for an activation add "
            "`keras_efficient.layers.InvertibleLeakyReLU` behind the layer."
        )


def without_refused(config):
    return {key: x for key, x in config.items() if key not in REFUSED}
