import keras
from keras import ops

from keras_efficient.layers.invertible.examples import zeros_per_example
from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer
from keras_efficient.layers.invertible.orthogonal import PARAMETRIZATIONS
from keras_efficient.layers.invertible.orthogonal import first_weight
from keras_efficient.layers.invertible.orthogonal import orthogonal
from keras_efficient.layers.invertible.orthogonal import weight_shape


@keras.saving.register_keras_serializable(package="keras_efficient")
class OrthogonalMixing(InvertibleLayer):
    """Mix channels by an orthogonal matrix that is learned, exactly invertible.

    ```
    call:     y = x U
    inverse:  x = y U^T
    ```

    U stays orthogonal while it is trained, so the inverse is exact and errors
    do not grow (unlike those of `InvertibleDense`, whose kernel is free). As
    a block of a `keras_efficient.layers.ReversibleSequence` it lets the two
    streams of couplings exchange channels.

    ```
    "cayley":       U = (I + A)^-1 (I - A),  A = W - W^T
    "householder":  U = H_1 H_2 ... H_n,     H_i = I - 2 v_i v_i^T / |v_i|^2
    ```

    The Cayley map is one linear system a call; it reaches all rotations
    without an eigenvalue of -1. Reflections reach all orthogonal matrices by
    n steps one after the other.

    Args:
        parametrization: `"cayley"` or `"householder"`. Defaults to
            `"cayley"`.
        axis: Integer, the axis of the channels. Defaults to `-1`.
        kernel_initializer: Initializer of W or of the v_i, of shape
            `(n, n)` for n channels (for odd n one more vector). Defaults to
            `None`, from which `U = I`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: `parametrization` is neither.

    Example:

    ```python
    mixing = keras_efficient.layers.OrthogonalMixing(
        kernel_initializer="glorot_normal"
    )
    x = keras.random.normal((2, 4, 4, 6))
    x_again = mixing.inverse(mixing(x))
    ```

    Reference:
        - [Kingma and Dhariwal, 2018](https://arxiv.org/abs/1807.03039)
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
        - [Tomczak and Welling, 2016](https://arxiv.org/abs/1611.09630)
    """

    has_exact_inverse = True

    def __init__(
        self,
        parametrization="cayley",
        axis=-1,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(
                f"`parametrization` must be one of {PARAMETRIZATIONS}. "
                f"Received: parametrization={parametrization!r}"
            )
        self.parametrization = parametrization
        self.axis = axis
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or first_weight(parametrization)
        )

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=weight_shape(input_shape[self.axis], self.parametrization),
            initializer=self.kernel_initializer,
            # The matrix would lose its orthogonality.
            autocast=False,
        )

    def call(self, inputs):
        return self.linear(inputs)

    def linear(self, inputs):
        return self._multiply(super().linear(inputs), self._matrix())

    def adjoint(self, outputs):
        matrix = ops.transpose(self._matrix())
        return self._multiply(super().adjoint(outputs), matrix)

    def log_det(self, inputs):
        """Return zeros, of shape `(batch,)`."""
        return zeros_per_example(self._standardize(inputs, "log_det"))

    def _invert(self, outputs):
        return self.adjoint(outputs)

    def _matrix(self):
        matrix = orthogonal(self.kernel, self.parametrization)
        return ops.cast(matrix, self.compute_dtype)

    def _multiply(self, x, matrix):
        if self.axis in (-1, len(x.shape) - 1):
            return ops.matmul(x, matrix)
        x = ops.matmul(ops.moveaxis(x, self.axis, -1), matrix)
        return ops.moveaxis(x, -1, self.axis)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "parametrization": self.parametrization,
            "axis": self.axis,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }
