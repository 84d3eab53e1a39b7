"""The layer that makes logits: a Dense, or a transposed embedding."""

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.ops.shared_lookup import shared_lookup


def why_not_a_head(layer):
    """Return why a layer's logits cannot be computed in chunks, or `None`."""
    kinds = keras.layers.Dense, keras.layers.ReversibleEmbedding
    kind = next((k for k in kinds if isinstance(layer, k)), None)
    if kind is None:
        return (
            "logits must come from a `keras.layers.Dense` or a "
            f"`keras.layers.ReversibleEmbedding`, not from '{layer.name}' (of "
            f"type {type(layer)})"
        )
    if type(layer).call is not kind.call:
        return f"'{layer.name}' has a `call` of its own"
    if not layer.built:
        return f"'{layer.name}' is not built: call the model on a batch first"
    if layer.quantization_mode is not None:
        return f"'{layer.name}' is quantized"
    if layer.activity_regularizer is not None:
        return f"'{layer.name}' has an activity regularizer"
    if kind is keras.layers.Dense and not is_linear(layer):
        return (
            f"'{layer.name}' has an activation; it must return logits, for a "
            "loss with `from_logits=True`"
        )
    return None


def is_linear(layer):
    return layer.activation in (None, keras.activations.linear)


def makes_logits(layer, args, kwargs):
    """Whether a call of a head is that which makes logits."""
    if isinstance(layer, keras.layers.Dense):
        return True
    return bool(kwargs.get("reverse", args[0] if args else False))


def dtype_of(layer):
    """The dtype in which it multiplies."""
    return getattr(layer, "reverse_dtype", None) or layer.compute_dtype


def vocabulary_of(layer):
    """The number of logits."""
    if isinstance(layer, keras.layers.Dense):
        return layer.units
    return layer.input_dim


def parameters_of(layer):
    """Return `((kernel[, bias]), transpose)` as tensors, LoRA included."""
    if isinstance(layer, keras.layers.Dense):
        kernel, transpose = layer.kernel, False
    elif layer.tie_weights:
        kernel, transpose = layer.embeddings, True
    else:
        kernel, transpose = layer.reverse_embeddings, False
    found = [kernel, getattr(layer, "bias", None)]
    found = [_tensor(x) for x in found if x is not None]
    return tuple(found), transpose


def look_up(layer, inputs):
    """Return what tied embeddings make of indices, and their other use."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if dtype not in ("int32", "int64"):
        inputs = ops.cast(inputs, "int32")
    (table, *_), _ = parameters_of(layer)
    rows, table = shared_lookup(table, inputs)
    rows = ops.cast(rows, layer.compute_dtype)
    # A `ReversibleEmbedding` sets the mask in its call.
    mask = keras.layers.Embedding.compute_mask(layer, inputs)
    return with_mask(rows, mask), table


def _tensor(x):
    # On TensorFlow Keras would return a variable, which is none.
    return backend.as_tensor(ops.convert_to_tensor(x))


def is_trainable(layer):
    return any(v.trainable for v in layer.variables)
