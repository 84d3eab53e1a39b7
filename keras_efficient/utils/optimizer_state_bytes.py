import math
import re

import keras


def optimizer_state_bytes(optimizer):
    """Count the bytes of an optimizer's variables.

    Args:
        optimizer: A built `keras.optimizers.Optimizer`: one that has made a
            step, or whose `build(variables)` was called.

    Returns:
        Integer. The few bytes of `iterations` and `learning_rate` are
        included, as in `model.summary()`.

    Example:

    ```python
    layer = keras.layers.Dense(64)
    layer.build((None, 64))
    optimizer = keras_efficient.optimizers.MicroAdam()
    optimizer.build(layer.trainable_variables)
    keras_efficient.utils.optimizer_state_bytes(optimizer)
    ```
    """
    return sum(
        math.prod(variable.shape) * _itemsize(variable.dtype)
        for variable in optimizer.variables
    )


def _itemsize(dtype):
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits.group()) // 8 if bits else 1
