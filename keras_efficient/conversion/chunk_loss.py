import contextlib

import keras

from keras_efficient.conversion.arguments import check_model
from keras_efficient.models import vocabulary_head
from keras_efficient.models.chunked_training import ChunkedTraining
from keras_efficient.models.chunked_training import why_not_a_loss


def chunk_loss(model, chunk_size="auto", head=None):
    """Make `fit` of a model compute its loss without whole logits, in place.

    16 sequences of 1,024 tokens and 50,000 words are 3.3 GB of logits, and as
    much again for their gradient. A model that ends in logits, from a
    `keras.layers.Dense` or the transposed embedding of a language model, gets
    the loss, its metrics and all gradients from a chunk of tokens at a time,
    as `keras_efficient.ops.linear_cross_entropy` computes them. There are no
    more products of matrices than before.

    The model stays the object that it is, with its class, variables and
    config, and trains as before but for rounding: `sample_weight`,
    `class_weight`, masks, mixed precision, loss scaling, gradient
    accumulation, LoRA, losses that layers add. (Under a mixed policy logits
    are not rounded to 16 bits any more.) `evaluate` and the validation of
    `fit` work in chunks, too. `predict`, `generate` and calls of the model
    return logits.

    Metrics see the tokens of a chunk instead of a batch. Those that are sums
    or means over tokens have the values that they had.

    It is a property of the object, not of what is saved: copies and clones are
    plain; ask again for them. Call it before or after `compile`, `fit` or
    `enable_lora`, and together with `keras_efficient.recompute` and
    `keras_efficient.micro_batches`. A second call replaces what the first one
    did. `keras_efficient.models.ReversibleCausalLM` and its twin for KerasHub
    compute their loss so by default.

    Args:
        model: A built `keras.Model` that returns logits, one tensor. Its loss
            is `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
        chunk_size: Integer, tokens at a time. `"auto"` takes as many as make
            logits of the size of the hidden states, and at least 256 (512 on
            JAX, 128 on TensorFlow). `None` undoes what was done before.
            Defaults to `"auto"`.
        head: The layer that makes the logits, a `keras.layers.Dense` without
            activation or a `keras.layers.ReversibleEmbedding`. Defaults to
            `None`: that which the output of a functional model comes from, or
            the last one of `model.layers`.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`, or `chunk_size` no integer.
        ValueError: the model has several outputs, does not end in such a
            layer, or has a training step of its own. The first step, if it was
            not compiled before: another loss, or a metric that needs all
            logits at once. The model is unchanged.

    Example:

    ```python
    tokens = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(1000, 16)(tokens)
    model = keras.Model(tokens, keras.layers.Dense(1000)(hidden))
    keras_efficient.chunk_loss(model)
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    ```

    Reference:
        - [Wijmans et al., 2024](https://arxiv.org/abs/2411.09009)
    """
    check_model(model)
    before = ChunkedTraining.of(model)
    if chunk_size is None:
        if before:
            before.remove()
    else:
        if chunk_size != "auto" and not isinstance(chunk_size, int):
            raise TypeError(
                '`chunk_size` must be a number of tokens, "auto", or `None` '
                f"to undo it. Received: chunk_size={chunk_size!r}"
            )
        if chunk_size != "auto" and chunk_size < 1:
            raise ValueError(
                "`chunk_size` must be at least one token. "
                f"Received: chunk_size={chunk_size}"
            )
        cast = False
        if head is None and before:
            head, cast = before.head, before.cast
        elif head is None:
            head, cast = _head_of(model)
        _check(model, head)
        if before:
            before.remove()
        size = None if chunk_size == "auto" else chunk_size
        ChunkedTraining(model, head, size, strict=True, cast=cast)
    # What was compiled is of another model.
    model.train_function = model.test_function = None
    return model


@contextlib.contextmanager
def hidden_states(model, batch):
    """Within, a model returns what its head would make logits of.

    Args:
        model: Compiled `keras.Model`, with or without chunks.
        batch: Tuple of inputs and labels.

    Raises:
        ValueError: The model does not end in such a head.
    """
    before = chunked = ChunkedTraining.of(model)
    if not before:
        head, cast = _head_of(model)
        _check(model, head)
        chunked = ChunkedTraining(model, head, strict=True, cast=cast)
    try:
        with chunked.within_step(batch):
            yield
    finally:
        if not before:
            chunked.remove()


def _check(model, head):
    reason = vocabulary_head.why_not_a_head(head)
    if getattr(model, "compiled", False):
        reason = reason or why_not_a_loss(model.loss)
    for name in ("train_step", "compute_loss", "compute_metrics"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            reason = f"{type(model)} has a method `{name}` of its own"
    if reason:
        raise ValueError(
            f"The loss of model '{model.name}' cannot be computed in chunks: "
            f"{reason}."
        )


def _head_of(model):
    """The layer that makes the output of a model, and whether that is cast."""
    outputs = getattr(model, "outputs", None)
    if not outputs:  # a subclass of `keras.Model`
        if not model.layers:
            raise ValueError(
                f"Model '{model.name}' has no layers. Name the one that makes "
                "the logits: `chunk_loss(model, head=...)`."
            )
        return model.layers[-1], False
    if len(outputs) > 1:
        raise ValueError(
            f"Model '{model.name}' has {len(outputs)} outputs, whose losses "
            "cannot be computed in chunks. It must return logits, one tensor."
        )
    made_by, cast = outputs[0]._keras_history, False
    # Mixed precision often ends in a cast: `Activation("linear", "float32")`.
    while isinstance(
        made_by.operation, keras.layers.Activation
    ) and vocabulary_head.is_linear(made_by.operation):
        node = made_by.operation._inbound_nodes[made_by.node_index]
        made_by, cast = node.input_tensors[0]._keras_history, True
    return made_by.operation, cast
