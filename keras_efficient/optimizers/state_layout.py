import keras

from keras_efficient.ops.quantize_8bit import scale_shape


def state_layout(variable, shape):
    """Return the layout of state of a variable: the variable's, or replicated.

    State of the variable's shape follows it under `keras.distribution`; state
    of another shape is replicated. That is said, not left to Keras, which
    looks for the path of a variable without layout in the `LayoutMap`: there
    `".*kernel.*"`, meant for a matrix, matches its state of any rank, too.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    if tuple(shape) == tuple(variable.shape):
        return distribution.get_variable_layout(variable)
    return _replicated(len(shape))


def scale_layout(variable):
    """Return the layout of the scales of `quantize_8bit`."""
    shape = tuple(variable.shape)
    layout = state_layout(variable, shape)
    rank = len(scale_shape(shape))
    # Groups along the last axis leave the others; flattened groups leave none.
    if rank == len(shape) and hasattr(layout, "axes"):
        axes = [*layout.axes[:-1], None]
        return keras.distribution.TensorLayout(axes, layout.device_mesh)
    return layout and _replicated(rank)


def _replicated(rank):
    mesh = keras.distribution.distribution().device_mesh
    return keras.distribution.TensorLayout([None] * rank, mesh)
