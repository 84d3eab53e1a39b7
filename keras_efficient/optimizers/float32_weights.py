import re

import keras
from keras import ops

from keras_efficient.ops.uniform_noise import uniform_noises
from keras_efficient.ops.weight_rounding import MODES
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.ops.weight_rounding import join_weight
from keras_efficient.ops.weight_rounding import round_weight
from keras_efficient.ops.weight_rounding import split_weight
from keras_efficient.optimizers.local_shards import LocalView
from keras_efficient.optimizers.local_shards import divided_zeros
from keras_efficient.optimizers.local_shards import is_divided
from keras_efficient.optimizers.local_shards import places_of
from keras_efficient.optimizers.local_shards import value_of
from keras_efficient.optimizers.names import check_workers
from keras_efficient.optimizers.names import path_of
from keras_efficient.optimizers.state_layout import state_layout


class Float32Weights:
    """What an optimizer sees of its 16-bit variables: float32.

    Variables of other dtypes have no part in this.

    Args:
        rounding: `"compensated"`, `"stochastic"` or `"nearest"`.
    """

    def __init__(self, rounding):
        if rounding not in MODES:
            raise ValueError(
                f"`weight_rounding` must be one of {MODES}. "
                f"Received: weight_rounding={rounding}"
            )
        self.rounding = rounding
        self.corrections = []

    def build(self, optimizer, variables, zero=False):
        """Add the corrections, `None` for variables that need none."""
        is_compensated = self.rounding == "compensated"
        self.corrections = [
            self._add_correction(optimizer, variable, zero)
            if is_compensated and is_16_bit(variable)
            else None
            for variable in variables
        ]

    def _add_correction(self, optimizer, variable, zero):
        check_workers(optimizer, "int8")
        return optimizer.add_variable(
            variable.shape,
            divided_zeros(variable) if is_divided(variable) else "zeros",
            "int8",
            layout=state_layout(variable, variable.shape, zero),
            name=f"{re.sub('[/:]', '_', path_of(variable))}_correction",
        )

    def read(self, index, variable):
        """Return the float32 value of the 16-bit variable of an index."""
        weight = ops.stop_gradient(value_of(variable, variable))
        correction = self.corrections[index]
        if correction is None:
            return in_float32(weight)
        return in_float32(weight, value_of(correction, variable))

    def write(self, optimizer, index, variable, x, step):
        """Assign float32 to the 16-bit variable of an index."""
        dtype = keras.backend.standardize_dtype(variable.dtype)
        sizes = {index: places_of(variable)}
        weight, correction = self.rounded(x, dtype, sizes, step)
        if correction is not None:
            target = self.corrections[index]
            if isinstance(variable, LocalView):
                target = LocalView(target)
            optimizer.assign(target, correction)
        optimizer.assign(variable, weight)

    def rounded(self, x, dtype, sizes, step):
        """Return float32 in a dtype of 16 bits, and its correction or `None`.

        Args:
            x: float32 tensor, the values of one or several variables.
            dtype: `"bfloat16"` or `"float16"`.
            sizes: Dict from the indices of these variables to their sizes, or
                to the places of a shard, as `uniform_noises` takes them.
            step: int32 tensor, the number of this step.
        """
        if self.rounding == "compensated":
            return split_weight(x, dtype)
        noise = 0.5
        if self.rounding == "stochastic":
            # Seeds that no state has.
            seeds = {-1 - index: size for index, size in sizes.items()}
            noise = ops.reshape(uniform_noises(seeds, step), x.shape)
        return round_weight(x, dtype, noise), None


def in_float32(weight, correction=None):
    """Return a weight of 16 bits, with its correction if it has one."""
    if correction is None:
        return ops.cast(weight, "float32")
    return join_weight(weight, correction)


def float32_gradients(optimizer, gradients):
    """Cast gradients of 16 bits, if Keras computes with them before the step.

    Otherwise each is cast where it is used, one after another.
    """
    options = (
        optimizer.loss_scale_factor,
        optimizer.gradient_accumulation_steps,
        optimizer.clipnorm,
        optimizer.clipvalue,
        optimizer.global_clipnorm,
    )
    if all(option is None for option in options):
        return gradients
    return [
        ops.cast(g, "float32") if g is not None and is_16_bit(g) else g
        for g in gradients
    ]
