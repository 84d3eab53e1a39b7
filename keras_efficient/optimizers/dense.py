"""Gradients of embeddings that hold a few rows only."""

from keras import ops

from keras_efficient import backend


def dense(gradient):
    """Return a dense tensor; TensorFlow's slices stay until `update_step`."""
    if backend.is_dense(gradient):
        return gradient
    gradient = ops.convert_to_tensor(gradient, sparse=False)
    # PyTorch has its own.
    return getattr(gradient, "to_dense", lambda: gradient)()
