from keras_efficient.conversion.step_bytes import bytes_of


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
    return bytes_of(optimizer.variables)
