import math

import keras
from keras import ops

from keras_efficient.ops.quantize_8bit import scale_shape


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

    def _validate_range(self, *names):
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1). "
                    f"Received: {name}={getattr(self, name)}"
                )

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
        layout = _layout_of(variable)
        scale_layout = _scale_layout(layout, shape)
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
                    scale_layout,
                ),
            ]
        return slots

    def _add_float32_state(self, variable):
        layout = _layout_of(variable)
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
        state = [ops.convert_to_tensor(slot) for slot in slots]
        # TensorFlow's gradient of an embedding is sparse; this makes it dense.
        gradient = ops.reshape(gradient, variable.shape)
        if len(slots) > len(self.MOMENTS):
            update, *state = self._step_8bit(gradient, state, seed=index)
        else:
            update, *state = self._step_float32(gradient, state)
        for slot, value in zip(slots, state):
            self.assign(slot, value)
        update = ops.cast(learning_rate, "float32") * update
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def _step_8bit(self, gradient, state, seed):
        """Return the update and the new codes and scales."""
        raise NotImplementedError

    def _step_float32(self, gradient, state):
        """Return the update and the new moments."""
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "min_size": self.min_size}


def _layout_of(variable):
    distribution = keras.distribution.distribution()
    return distribution and distribution.get_variable_layout(variable)


def _scale_layout(layout, shape):
    if not isinstance(layout, keras.distribution.TensorLayout):
        return None
    rank = len(scale_shape(shape))
    # Groups along the last axis leave the others; flattened groups leave none.
    axes = [*layout.axes[:-1], None] if rank == len(shape) else [None]
    return keras.distribution.TensorLayout(axes, layout.device_mesh)
