import math

import keras
from keras import ops

from keras_efficient.kernels.tensors import framework_of
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.optimizers.batched_step import batched_step
from keras_efficient.optimizers.state_layout import scale_layout
from keras_efficient.optimizers.state_layout import state_layout


class Optimizer8bit(keras.optimizers.Optimizer):
    """Base class of the optimizers that keep one byte a moment.

    A subclass names its moments in `MOMENTS` and writes two steps, for the
    state of tensors of at least `min_size` elements (codes and scale of each
    moment, in turn) and for that of smaller ones (each moment in float32).

    Codes have the shape of the parameter and, under
    `keras.distribution.ModelParallel`, its layout; scales have that layout
    but for the last axis, which is not divided.
    """

    MOMENTS = {}  # name: dtype of its codes

    def __init__(self, learning_rate, min_size, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.min_size = min_size

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._states = [
            self._add_8bit_state(variable)
            if self._is_compressed(variable)
            else self._add_float32_state(variable)
            for variable in variables
        ]

    def _is_compressed(self, variable):
        return math.prod(variable.shape) >= self.min_size

    def _add_8bit_state(self, variable):
        shape = tuple(variable.shape)
        layout = state_layout(variable, shape)
        slots = []
        for name, dtype in self.MOMENTS.items():
            codes, scale = f"{name}_codes", f"{name}_scale"
            slots += [
                self._add(variable, codes, shape, dtype, layout),
                self._add(
                    variable,
                    scale,
                    scale_shape(shape),
                    "float16",
                    scale_layout(variable),
                ),
            ]
        return slots

    def _add_float32_state(self, variable):
        layout = state_layout(variable, variable.shape)
        return [
            self._add(variable, name, variable.shape, "float32", layout)
            for name in self.MOMENTS
        ]

    def _add(self, variable, name, shape, dtype, layout):
        name = f"{variable.path.replace('/', '_')}_{name}"
        return self.add_variable(shape, dtype=dtype, layout=layout, name=name)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        slots = self._states[index]
        value = ops.convert_to_tensor(variable)
        state = [ops.convert_to_tensor(slot) for slot in slots]
        # TensorFlow's gradient of an embedding is sparse; this makes it dense.
        gradient = ops.reshape(gradient, variable.shape)
        if len(slots) == len(self.MOMENTS):
            update, *state = self._step_float32(gradient, state)
        else:
            results = self._step_kernel(
                value, gradient, state, learning_rate, index
            )
            if results is not None:
                for target, result in zip([variable, *slots], results):
                    self.assign(target, result)
                return
            groups = {index: math.prod(slots[1].shape)}
            update, *state = self._step_8bit(gradient, state, groups)
        for slot, result in zip(slots, state):
            self.assign(slot, result)
        self._move(variable, update, learning_rate)

    def _move(self, variable, update, learning_rate):
        update = ops.cast(learning_rate, "float32") * update
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Update all variables; on PyTorch many of them at a time."""
        if framework_of(grads) != "torch":
            super()._backend_update_step(
                grads, trainable_variables, learning_rate
            )
        else:
            batched_step(self, grads, trainable_variables, learning_rate)

    def _step_kernel(self, value, gradient, state, learning_rate, seed):
        """Return the new value, codes and scales, or `None` without kernel."""
        return None

    def _step_8bit(self, gradient, state, groups):
        """Return the update and the new codes and scales.

        `groups` tells of the index of each variable that the gradient is made
        of how many groups it has.
        """
        raise NotImplementedError

    def _step_float32(self, gradient, state):
        """Return the update and the new moments."""
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "min_size": self.min_size}
