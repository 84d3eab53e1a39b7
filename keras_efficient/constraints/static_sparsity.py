import functools
import math

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.backend.layers_inside import layers_inside
from keras_efficient.ops.uniform_noise import hashes


@keras.saving.register_keras_serializable(package="keras_efficient")
class StaticSparsity(keras.constraints.Constraint):
    """Keep a fixed random part of a kernel at zero.

    This is the recipe of sparse pre-training and dense fine-tuning: it saves
    no time and no memory in Keras, whose kernels stay dense. What it gives is
    a model whose zeros are there to be used elsewhere, or to be trained when
    they are set free.

    ```
    w = mask * w       mask: round((1 - sparsity) n) ones of n, at random
    ```

    The mask is a function of the seed and the shape, the same on every
    backend and after loading, and takes no memory: it is computed again in
    each step. Constraints run after the update, so that masked weights are 0
    in each forward pass but the first, unless `start` is called before.
    Optimizers that look at entries together see the gradients of masked ones,
    too, unless they are wrapped in `keras_efficient.optimizers
    .MaskedOptimizer`.

    1. Give layers the constraint: attention and feed-forward kernels, while
       embeddings, normalizations, biases and head stay dense.
    2. `StaticSparsity.start(model)`, then `compile` and `fit`.
    3. `StaticSparsity.release(model)`, then `compile` with a new optimizer
       and `fit` again: all weights are trained.

    Args:
        sparsity: Float in [0, 1), the part of the weights that is 0.
        seed: Integer. Layers of one shape and seed have the same mask.
            Defaults to `0`.

    Raises:
        ValueError: `sparsity` is outside its range.

    Example:

    ```python
    layer = keras.layers.Dense(
        8,
        kernel_constraint=keras_efficient.constraints.StaticSparsity(0.75),
    )
    ```

    Reference:
        - SPDF, [Thangarasa et al., 2023](https://arxiv.org/abs/2303.10464)
    """

    def __init__(self, sparsity, seed=0):
        check_numbers("[0, 1)", sparsity=sparsity)
        self.sparsity = sparsity
        self.seed = seed

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        return ops.where(self.mask(w.shape), w, ops.zeros_like(w))

    def mask(self, shape):
        """Return the mask of a kernel of this shape, a tensor of booleans."""
        shape = tuple(shape)
        size = math.prod(shape)
        kept = round((1 - self.sparsity) * size)
        if kept == size:
            return ops.ones(shape, "bool")
        border, place = _border(size, kept, self.seed)
        places = ops.arange(size, dtype="int32")
        numbers = hashes(places, 0, self.seed)
        mask = (numbers < border) | ((numbers == border) & (places <= place))
        return ops.reshape(mask, shape)

    @staticmethod
    def start(model, rescale=False):
        """Set masked weights of a model to zero now.

        Args:
            model: A built model or layer.
            rescale: Boolean, whether to divide the others by
                `sqrt(1 - sparsity)`, so that sums keep their variance. What
                the paper does is not known. Defaults to `False`.

        Returns:
            The number of kernels.

        Raises:
            ValueError: no kernel has the constraint.
        """
        variables = _constrained(model)
        for variable in variables:
            value = variable.constraint(variable)
            if rescale:
                kept = 1 - variable.constraint.sparsity
                value = value / math.sqrt(kept)
            variable.assign(value)
        return len(variables)

    @staticmethod
    def release(model):
        """Take the constraint away; compile the model anew afterwards.

        It is also gone from the settings of the layers, so that a file of the
        model does not bring it back.

        Args:
            model: A built model or layer.

        Returns:
            The number of kernels.

        Raises:
            ValueError: no kernel has the constraint.
        """
        variables = _constrained(model)
        for variable in variables:
            variable.constraint = None
        for layer in layers_inside(model):
            for name, value in list(vars(layer).items()):
                if isinstance(value, StaticSparsity):
                    setattr(layer, name, None)
        return len(variables)

    def get_config(self):
        return {"sparsity": self.sparsity, "seed": self.seed}


def _constrained(model):
    variables = [
        variable
        for variable in model.variables
        if isinstance(variable.constraint, StaticSparsity)
    ]
    if not variables:
        raise ValueError(
            f"'{model.name}' must have kernels with a `StaticSparsity` "
            "constraint, and be built. Received: "
            f"{len(model.variables)} variables, none with it."
        )
    return variables


@functools.lru_cache(maxsize=256)
def _border(size, kept, seed):
    """Return the largest number and place among the `kept` smallest hashes."""
    with np.errstate(over="ignore"):
        numbers = _mix(np.array([seed], "int64").astype("uint32"))
        numbers = _mix(_mix(numbers) + np.arange(size, dtype="uint32"))
    numbers = numbers.view("int32")
    border = np.partition(numbers, max(kept - 1, 0))[max(kept - 1, 0)]
    at_border = np.flatnonzero(numbers == border)
    # Two hashes may be equal: the first places come first.
    place = at_border[kept - np.count_nonzero(numbers < border) - 1]
    return int(border), int(place)


def _mix(x):
    """As in `hashes`, in NumPy."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
