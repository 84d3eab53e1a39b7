"""Gradients of embeddings that hold a few rows only.

They are made dense, as Keras' Adam does. Steps of these rows alone would be
another algorithm. With a momentum of 0.9, a row goes ten times as far as in the
first step before it comes to rest, and would do a tenth of that; decay would
reach the words that are seen, not the others; and a model would train otherwise
where gradients are dense, as in `fit` on JAX and PyTorch.
"""

from keras import ops

from keras_efficient import backend


def dense(gradient):
    """Return a dense tensor; TensorFlow's slices stay until `update_step`."""
    if backend.is_dense(gradient):
        return gradient
    gradient = ops.convert_to_tensor(gradient, sparse=False)
    # PyTorch has its own.
    return getattr(gradient, "to_dense", lambda: gradient)()
