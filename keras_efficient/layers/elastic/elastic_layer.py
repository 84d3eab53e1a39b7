"""What layers with parts that can be switched off have in common."""

import keras
from keras import ops


class ElasticLayer(keras.layers.Layer):
    """A layer with a kernel of which only the first rows and columns count.

    What is active are variables, read while the layer runs: changing it
    compiles nothing anew. A subclass builds `kernel` and `bias`.
    """

    def _count(self, name, value):
        return self.add_weight(
            name=name,
            shape=(),
            dtype="int32",
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                value, dtype
            ),
            trainable=False,
        )

    def _build_counts(self, inputs, outputs):
        self.active_inputs = self._count("active_inputs", inputs)
        self.active_outputs = self._count("active_outputs", outputs)

    def _mask(self, size, count, dtype):
        return ops.cast(ops.arange(size) < count, dtype)

    def masked_kernel(self, kernel):
        """Return the kernel with 0 for what is not active."""
        inputs, outputs = kernel.shape[-2:]
        rows = self._mask(inputs, self.active_inputs, kernel.dtype)
        columns = self._mask(outputs, self.active_outputs, kernel.dtype)
        return kernel * rows[:, None] * columns

    def masked_bias(self):
        bias = ops.convert_to_tensor(self.bias)
        return bias * self._mask(bias.shape[0], self.active_outputs, bias.dtype)

    def _assign(self, name, variable, value, choices):
        """Make a number active, if it is one of those that can be."""
        if value is None:
            return
        if value not in choices:
            raise ValueError(
                f"`{name}` must be one of {choices}. Received: {name}={value}"
            )
        if getattr(variable, "_value", value) is None:
            raise RuntimeError(
                "While `fit` runs on JAX, variables are elsewhere, and what is "
                "assigned to them is lost. Call `model.jax_state_sync()` "
                "before `set_active`, or use `keras_efficient.callbacks."
                "SubnetworkSampling`."
            )
        variable.assign(value)

    def _active(self, variable):
        return int(ops.convert_to_numpy(variable))

    def _sliced(self, kernel):
        """Return the weights of a plain layer of the active size, as arrays."""
        inputs = self._active(self.active_inputs)
        outputs = self._active(self.active_outputs)
        weights = [ops.convert_to_numpy(kernel)[..., :inputs, :outputs]]
        if self.use_bias:
            weights.append(ops.convert_to_numpy(self.bias)[:outputs])
        return weights
