import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.ops.vocabulary_chunks import Loss
from keras_efficient.ops.vocabulary_chunks import losses_of_tokens


def linear_cross_entropy(
    hidden,
    kernel,
    labels,
    bias=None,
    chunk_size=None,
    soft_cap=None,
    label_smoothing=0.0,
    ignore_class=None,
    transpose=False,
):
    """Compute the loss of a last layer without holding its logits whole.

    The result is the cross-entropy of each token:

    ```
    z    = hidden @ kernel + bias           or soft_cap * tanh(z / soft_cap)
    loss = logsumexp(z) - (1 - label_smoothing) z[label]
                        - label_smoothing mean(z)
    ```

    A plain computation keeps `tokens * vocabulary` logits, and as many
    gradients. Here the logits of a chunk of tokens are there at a time, and
    they are computed again in the backward pass: four products of matrices
    instead of three, and fewer passes over memory. Gradients of `hidden`,
    `kernel` and `bias` are exact but for rounding.

    Products take operands in the dtype of `hidden`, and sum in float32; the
    softmax and sums over chunks are float32 (with float64 hidden states all is
    float64). A float32 kernel next to 16-bit hidden states is cast, and has a
    float32 gradient.

    `keras_efficient.chunk_loss` makes `fit` of a model use such a loss.

    Args:
        hidden: Float tensor of shape `(..., width)`, hidden states of tokens.
        kernel: Float tensor of shape `(width, vocabulary)`.
        labels: Integer tensor of the shape of `hidden` without its last axis.
        bias: Float tensor of shape `(vocabulary,)`. Defaults to `None`.
        chunk_size: Integer, tokens at a time. Defaults to `None`: as many as
            make logits of the size of the hidden states, and at least 256
            (512 on JAX, 128 on TensorFlow).
        soft_cap: Positive float, the bound of logits. Defaults to `None`.
        label_smoothing: Float in [0, 1), the part of a label that is spread
            over the vocabulary. Defaults to `0.0`.
        ignore_class: Integer, the label of tokens whose loss is zero; it may
            be out of range. Defaults to `None`.
        transpose: Boolean. Whether `kernel` has the shape `(vocabulary,
            width)`, as the table of an embedding. Defaults to `False`.

    Returns:
        Float32 tensor (float64 if `hidden` is) of the shape of `labels`.

    Raises:
        ValueError: shapes do not fit, an option is out of its range, or a
            label is not in [0, vocabulary). In a compiled program, and on a
            GPU, the loss of such a label is NaN instead.
        TypeError: a dtype is of the wrong kind.

    Example:

    ```python
    hidden = keras.random.normal((2, 100, 16))
    kernel = keras.random.normal((16, 1000))
    labels = keras.random.randint((2, 100), 0, 1000)
    loss = keras_efficient.ops.linear_cross_entropy(hidden, kernel, labels)
    ```

    Reference:
        - [Wijmans et al., 2024](https://arxiv.org/abs/2411.09009)
    """
    given = [x for x in (hidden, labels, kernel, bias) if x is not None]
    # Keras alone would leave a variable of TensorFlow as it is.
    hidden, labels, *parameters = [
        backend.as_tensor(ops.convert_to_tensor(x)) for x in given
    ]
    parameters = tuple(parameters)
    kernel = parameters[0]
    loss = Loss(chunk_size, soft_cap, label_smoothing, ignore_class, transpose)
    _check_options(loss)
    _check_tensors(hidden, labels, parameters, transpose)
    labels = ops.cast(labels, "int32")
    check_labels(labels, kernel.shape[0 if transpose else 1], ignore_class)
    losses, _ = losses_of_tokens(
        ops.reshape(hidden, (-1, hidden.shape[-1])),
        parameters,
        ops.reshape(labels, (-1,)),
        loss,
    )
    return ops.reshape(losses, ops.shape(labels))


def _check_options(loss):
    size, cap, smoothing = loss.chunk_size, loss.soft_cap, loss.label_smoothing
    if size is not None and not (isinstance(size, int) and size > 0):
        raise ValueError(
            "`chunk_size` must be a positive integer, the tokens of a chunk, "
            f"or `None`. Received: chunk_size={size}"
        )
    if cap is not None and not cap > 0:
        raise ValueError(
            "`soft_cap` must be a positive number, the bound of logits, or "
            f"`None`. Received: soft_cap={cap}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(
            "`label_smoothing` must be a number in [0, 1). Received: "
            f"label_smoothing={smoothing}"
        )


def _check_tensors(hidden, labels, parameters, transpose):
    for name, x in zip(("hidden", "kernel", "bias"), (hidden, *parameters)):
        dtype = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise TypeError(
                f"`{name}` must be of a float dtype. Received: {dtype}"
            )
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not keras.backend.is_int_dtype(dtype):
        raise TypeError(
            "`labels` must be integers, the index of the right entry of the "
            f"vocabulary. Received: dtype {dtype}"
        )
    kernel, *bias = parameters
    width = hidden.shape[-1] if len(hidden.shape) else None
    if len(kernel.shape) != 2 or kernel.shape[1 if transpose else 0] != width:
        expected = ("vocabulary", width) if transpose else (width, "vocabulary")
        raise ValueError(
            f"`kernel` must have shape ({expected[0]}, {expected[1]}), for "
            f"hidden states of shape {tuple(hidden.shape)} and transpose="
            f"{transpose}. Received: shape {tuple(kernel.shape)}"
        )
    vocabulary = kernel.shape[0 if transpose else 1]
    if bias and tuple(bias[0].shape) != (vocabulary,):
        raise ValueError(
            f"`bias` must have shape ({vocabulary},), an entry for each word. "
            f"Received: shape {tuple(bias[0].shape)}"
        )
    sizes = zip(hidden.shape[:-1], labels.shape)
    if len(labels.shape) != len(hidden.shape) - 1 or any(
        m != n and None not in (m, n) for m, n in sizes
    ):
        raise ValueError(
            "`labels` must have the shape of `hidden` without its last axis, "
            f"{tuple(hidden.shape[:-1])}. Received: shape "
            f"{tuple(labels.shape)}"
        )


def check_labels(labels, vocabulary, ignore_class, weights=None):
    """Raise an error if a label is out of range, where values can be seen."""
    given = [x for x in (labels, weights) if x is not None]
    if not all(map(backend.can_look_at, given)):
        return
    with backend.eagerly():
        wrong = ops.logical_or(labels < 0, labels >= vocabulary)
        if ignore_class is not None:
            wrong = ops.logical_and(wrong, ops.not_equal(labels, ignore_class))
        if weights is not None:
            wrong = ops.logical_and(wrong, ops.not_equal(weights, 0))
        if not ops.any(wrong):
            return
        found = ops.convert_to_numpy(labels)[ops.convert_to_numpy(wrong)]
    raise ValueError(
        f"Labels must be in [0, {vocabulary}), the size of the vocabulary. "
        f"Received: {found[:5].tolist()}, among others. Give tokens that are "
        "not to count the label `ignore_class`, or a weight of zero."
    )
