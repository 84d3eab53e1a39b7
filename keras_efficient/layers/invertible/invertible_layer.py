"""What all layers with a tied inverse have in common."""

import warnings

import keras
from keras import ops

from keras_efficient.backend import nested
from keras_efficient.layers.invertible.examples import sum_per_example


class InvertibleLayer(keras.layers.Layer):
    """Base class of layers that invert themselves with their own variables.

    A subclass defines `_invert`, `linear` and `adjoint`. The last two are its
    linear part E, without biases and activations, and the transpose of it,
    from which `keras_efficient.metrics.OrthonormalityError` is measured.
    """

    # Whether `inverse(call(x))` is x, whatever the variables are.
    has_exact_inverse = False

    def inverse(self, outputs):
        """Map outputs back to inputs, with the variables of the layer.

        Args:
            outputs: A tensor, as `call` returns it.

        Returns:
            A tensor of the layer's compute dtype, of the shape of the inputs.

        Raises:
            ValueError: the layer is not built, or `outputs` are symbolic.
        """
        return self._invert(self._standardize(outputs, "inverse"))

    def linear(self, inputs):
        """Apply E, the linear part of the layer, to `inputs`."""
        return self._standardize(inputs, "linear")

    def adjoint(self, outputs):
        """Apply the transpose of E to `outputs`."""
        return self._standardize(outputs, "adjoint")

    def log_det(self, inputs):
        """Return `log |det J|`, J the Jacobian of all outputs by all inputs.

        Args:
            inputs: A tensor, as `call` takes it.

        Returns:
            Tensor of shape `(batch,)`.

        Raises:
            ValueError: the layer does not map each position to as many
                features as it has, by a matrix of its own.
        """
        x = self._standardize(inputs, "log_det")
        matrix = self.position_matrix()
        # Of an orthogonal matrix it is 0. (XLA has no `slogdet` on TensorFlow.)
        _, triangle = ops.qr(matrix)
        log_det = ops.sum(ops.log(ops.abs(ops.diagonal(triangle))))
        # One matrix for each position.
        share = log_det / matrix.shape[-1]
        return sum_per_example(ops.zeros_like(x) + ops.cast(share, x.dtype))

    def position_matrix(self):
        """Return the square matrix that E applies to each position."""
        raise ValueError(
            f"Layer '{self.name}' (of {type(self)}) does not tell the "
            "determinant of its Jacobian. Define `log_det(inputs)`."
        )

    def compute_inverse_shape(self, output_shape):
        return tuple(output_shape)

    def compute_inverse_spec(self, outputs):
        """Return `inverse` of symbolic outputs, as `compute_output_spec`."""
        shape = self.compute_inverse_shape(outputs.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def _standardize(self, x, method):
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' has to be built before `{method}` is "
                "used. Call it on inputs once, or call `build(input_shape)`."
            )
        if any(isinstance(t, keras.KerasTensor) for t in nested.flatten(x)):
            raise ValueError(
                f"`{method}` takes a tensor of values. Received the symbolic "
                f"{x}. In the functional API use "
                "`keras_efficient.layers.Inverse(layer)`."
            )
        return self._to_tensors(x)

    def _to_tensors(self, x):
        return ops.convert_to_tensor(x, self.compute_dtype)

    def _warn_of_loss(self, inputs, outputs):
        """Warn if a linear map of these numbers of features loses some."""
        if outputs < inputs:
            warnings.warn(
                f"Layer '{self.name}' maps {inputs} features to {outputs}. "
                f"`inverse(call(x))` can restore {outputs} dimensions of x; "
                f"the other {inputs - outputs} are lost.",
                stacklevel=3,
            )
        elif outputs > inputs:
            warnings.warn(
                f"Layer '{self.name}' maps {inputs} features to {outputs}, "
                "more than it can invert. `inverse(call(x))` can restore x, "
                f"but `call(inverse(y))` only {inputs} dimensions of y; the "
                f"other {outputs - inputs} are lost.",
                stacklevel=3,
            )
