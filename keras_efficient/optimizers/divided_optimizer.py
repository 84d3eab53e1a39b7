import keras
import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.local_shards import LocalView
from keras_efficient.optimizers.local_shards import divided_zeros
from keras_efficient.optimizers.local_shards import is_divided
from keras_efficient.optimizers.names import check_workers
from keras_efficient.optimizers.names import path_of
from keras_efficient.optimizers.state_layout import state_layout


class DividedOptimizer(keras.optimizers.Optimizer):
    """Base class: state that is divided among devices as its variables are.

    Under `keras.distribution` on JAX, see `Shards`; of DTensors on PyTorch, see
    `local_shards`. Files have the state of a tensor whole and in flat order,
    whatever its axes are here: any number of devices reads them.

    Args:
        zero: Boolean, whether devices divide the state of what all have.
        **kwargs: Those of `keras.optimizers.Optimizer`.
    """

    def __init__(self, zero=False, **kwargs):
        super().__init__(**kwargs)
        self.zero = zero

    def _find_shards(self, variable):
        """Return the `Shards` of a variable whose shards step by themselves.

        `None` where the step is left to the partitioner of XLA.
        """
        return None

    def _shapes_of_state(self, shape):
        """Return the shapes of the state of a compressed tensor.

        `None` where the step needs all of a tensor.
        """
        return None

    def _axes_before_blocks(self, slots):
        """Return how many axes state has before those of its blocks.

        For each of `slots`; `None` for what every device has.
        """
        return [0 for _ in slots]

    def _flat_shapes(self):
        """Return the shapes in files, by the index among all variables.

        Of those that have other shapes here.
        """
        return {}

    def _var_key(self, variable):
        # What is here of a variable has the state of all of it.
        is_view = isinstance(variable, LocalView)
        return super()._var_key(variable.variable if is_view else variable)

    def add_variable_from_reference(
        self, reference_variable, name=None, initializer="zeros"
    ):
        """As in the base class, but never of 16 bits; divided with `zero`."""
        is_plain = not is_16_bit(reference_variable) and not self.zero
        if is_plain and not is_divided(reference_variable):
            return super().add_variable_from_reference(
                reference_variable, name, initializer
            )
        shape = reference_variable.shape
        return self._add(
            reference_variable, name or "var", shape, initializer=initializer
        )

    def _add(
        self,
        variable,
        name,
        shape,
        dtype="float32",
        layout=None,
        initializer="zeros",
        places=(),
    ):
        """Add state; `layout` or `places` say how it is divided.

        `places` are the axes that may be, `None` for none at all.
        """
        check_workers(self, dtype)
        path = path_of(variable).replace("/", "_").replace(":", "_")
        name = f"{path}_{name}"
        if is_divided(variable) and places is not None:
            initializer = divided_zeros(variable, *places[:1])
        layout = layout or state_layout(variable, shape, self.zero, places)
        return self.add_variable(
            shape, initializer, dtype, layout=layout, name=name
        )

    def save_own_variables(self, store):
        flat = self._flat_shapes()
        for i, variable in enumerate(self.variables):
            value = backend.whole(variable)
            store[str(i)] = np.reshape(value, flat.get(i, value.shape))

    def load_own_variables(self, store):
        variables, flat = self.variables, self._flat_shapes()
        divided = [i for i, v in enumerate(variables) if is_divided(v)]
        if len(store.keys()) == len(variables) and (flat or divided):
            store = {key: store[key] for key in store.keys()}
            for i, shape in flat.items():
                if tuple(store[str(i)].shape) == shape:
                    x = np.asarray(store[str(i)])
                    store[str(i)] = np.reshape(x, variables[i].shape)
            for i in divided:
                x, like = np.asarray(store[str(i)]), variables[i].value
                store[str(i)] = backend.dtensors.divided(x, like)
        super().load_own_variables(store)

    def _backend_reset_gradient_accumulators(self):
        # Keras assigns plain zeros, which a DTensor does not take.
        for total in self._accumulated_gradients:
            if total is not None:
                total.assign(ops.zeros_like(total))

    def get_config(self):
        return {**super().get_config(), "zero": self.zero}
