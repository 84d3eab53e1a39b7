"""Losses over a large vocabulary, whose logits are never whole.

With `h` the hidden states and `y` the labels of some tokens, `K` and `b` the
kernel and bias of the last layer, `c` the soft cap, `e` the label smoothing and
`V` the size of the vocabulary:

```
z    = h K + b                          or c tanh((h K + b) / c)
loss = log sum_j exp(z_j) - (1 - e) z_y - e / V sum_j z_j
dz   = d (exp(z) / sum_j exp(z_j) - (1 - e) onehot(y) - e / V)
                                        with a soft cap times 1 - (z / c)^2
dh   = dz K^T      dK = h^T dz      db = sum over tokens of dz
```

The functions here loop over chunks of tokens or, if the kernel has 16 bits,
over pieces of the vocabulary. Products take operands in the dtype of `h`; all
else is float32 (float64 if `h` is).
"""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_efficient import backend
from keras_efficient.ops.chunked_head import ChunkedHead
from keras_efficient.ops.chunked_head import scaled
from keras_efficient.ops.head_in_pieces import HeadInPieces
from keras_efficient.ops.weight_rounding import is_16_bit


class Loss(NamedTuple):
    """The options of `keras_efficient.ops.linear_cross_entropy`, which see."""

    chunk_size: Any = None
    soft_cap: Any = None
    label_smoothing: float = 0.0
    ignore_class: Any = None
    transpose: bool = False


class Metrics(NamedTuple):
    """What is to be computed from the logits of each chunk.

    `update(state, labels, logits, *rows)` returns the new state, a tuple of
    tensors as the one given; `rows` are parts of tensors with an entry for each
    token.
    """

    update: Any
    state: tuple
    rows: tuple = ()


def head_of(hidden, parameters, loss):
    kind = HeadInPieces if is_16_bit(parameters[0]) else ChunkedHead
    return kind(hidden, parameters, loss)


def losses_of_tokens(
    hidden, parameters, labels, loss, metrics=None, trainable=True
):
    """Return the loss of each token, and the new state of metrics.

    The backward pass computes the logits again: four products of matrices
    instead of the three of a plain layer.

    Args:
        hidden: Tensor of shape `(tokens, width)`.
        parameters: Tuple of the kernel and, if there is one, the bias.
        labels: int32 tensor of shape `(tokens,)`.
        loss: `Loss`.
        metrics: `Metrics` or `None`.
        trainable: Whether gradients of the parameters are needed.

    Returns:
        `(losses, state)`, a tensor of shape `(tokens,)`, NaN where a label is
        out of range, and the state.
    """
    metrics = metrics or Metrics(None, ())

    def forward(hidden, parameters, labels, state, rows):
        head = head_of(hidden, parameters, loss)
        values, log_sum, state = head.losses(
            hidden, labels, Metrics(metrics.update, state, rows)
        )
        values = head.masked(head.poisoned(values, labels), labels)
        return (values, state), (hidden, parameters, labels, log_sum)

    def backward(residuals, cotangents):
        hidden, parameters, labels, log_sum = residuals
        head = head_of(hidden, parameters, loss)
        d = head.masked(cotangents[0], labels)
        found = head.gradients(hidden, labels, log_sum, d, trainable)
        return *found, None, None, None

    fn = backend.custom_vjp(forward, backward)
    return fn(hidden, parameters, labels, metrics.state, metrics.rows)


def weighted_loss(
    hidden, parameters, labels, weights, loss, metrics, gradients=(True, True)
):
    """Return the sum of weighted losses, and the new state of metrics.

    Gradients are computed with the loss, by three products of matrices. The
    backward pass multiplies them by one number, the cotangent. Those of a
    kernel of 16 bits come from `losses_of_tokens`: they would have to be kept
    in float32 until then.

    Args:
        hidden, parameters, labels, loss: As above.
        weights: Tensor of shape `(tokens,)`, which gets no gradient. Where it
            is zero, a token counts as zero, whatever its label is.
        metrics: `Metrics` or `None`.
        gradients: Whether those of hidden states and parameters are needed.

    Returns:
        `(sum, state)`. The sum is NaN where a label is out of range.
    """
    metrics = metrics or Metrics(None, ())
    dtypes = [x.dtype for x in (hidden, *parameters)]
    of_hidden, of_parameters = gradients
    if is_16_bit(parameters[0]):
        values, state = losses_of_tokens(
            hidden, parameters, labels, loss, metrics, of_parameters
        )
        weights = ops.stop_gradient(ops.cast(weights, values.dtype))
        values = ops.where(ops.equal(weights, 0), 0.0, values)
        return ops.sum(values * weights), state

    def forward(hidden, parameters, labels, weights, state, more):
        head = ChunkedHead(hidden, parameters, loss)
        logits = head.logits_of_chunks()
        weights = head.masked(ops.cast(weights, head.wide), labels)
        d, unit = head.normalized(weights)

        def step(carry, rows):
            state, sums = carry
            h, y, label, d, *more = rows
            z = logits(h)
            if metrics.update is not None:
                state = metrics.update(state, label, z, *more)
            values, _, dz = head.cross_entropy(
                z, y, d=d if any(gradients) else None
            )
            if not any(gradients):
                return (state, sums), (values,)
            d_hidden, sums = head.pull(dz, h, sums, of_hidden)
            return (state, sums), (values, d_hidden)[: 1 + of_hidden]

        rows = [hidden, head.index(labels), labels, d, *more]
        kinds = [(head.wide, ()), (head.wide, (hidden.shape[1],))]
        carry = state, head.zeros() if of_parameters else ()
        (state, sums), (values, *d_hidden) = head.over_chunks(
            step, carry, rows, head.size, kinds[: 1 + of_hidden]
        )
        values = head.poisoned(values, labels) * weights
        values = ops.where(ops.equal(weights, 0), 0.0, values)
        return (ops.sum(values), state), (unit, d_hidden, sums)

    def backward(residuals, cotangents):
        unit, d_hidden, sums = residuals
        factor = cotangents[0] if unit is None else cotangents[0] * unit
        of_first = [scaled(d, factor, dtypes[0]) for d in d_hidden]
        of_others = tuple(
            scaled(d, factor, dtype) for d, dtype in zip(sums, dtypes[1:])
        )
        return *(of_first or [None]), of_others or None, None, None, None, None

    fn = backend.custom_vjp(forward, backward)
    return fn(hidden, parameters, labels, weights, metrics.state, metrics.rows)
