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

The functions here loop over chunks of tokens. Products take operands in the
dtype of `h`; all else is float32 (float64 if `h` is).
"""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_efficient import backend


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


def losses_of_tokens(hidden, parameters, labels, loss):
    """Return the loss of each token.

    The backward pass computes the logits again: four products of matrices
    instead of the three of a plain layer.

    Args:
        hidden: Tensor of shape `(tokens, width)`.
        parameters: Tuple of the kernel and, if there is one, the bias.
        labels: int32 tensor of shape `(tokens,)`.
        loss: `Loss`.

    Returns:
        Tensor of shape `(tokens,)`, NaN where a label is out of range.
    """

    def forward(hidden, parameters, labels):
        head = _Head(hidden, parameters, loss)

        def step(carry, rows):
            h, y = rows
            values, log_sum, _ = head.cross_entropy(head.logits(h), y)
            return carry, (values, log_sum)

        rows = [hidden, head.index(labels)]
        kinds = [(head.wide, ()), (head.wide, ())]
        _, found = backend.over_chunks(step, (), rows, head.size, kinds)
        values, log_sum = found
        values = head.masked(head.poisoned(values, labels), labels)
        return values, (hidden, parameters, labels, log_sum)

    def backward(residuals, d):
        hidden, parameters, labels, log_sum = residuals
        head = _Head(hidden, parameters, loss)
        d, unit = head.normalized(head.masked(d, labels))

        def step(sums, rows):
            h, y, log_sum, d = rows
            _, _, dz = head.cross_entropy(head.logits(h), y, log_sum, d)
            d_hidden, sums = head.pull(dz, h, sums)
            return sums, (_scaled(d_hidden, unit, hidden.dtype),)

        rows = [hidden, head.index(labels), log_sum, d]
        kinds = [(head.dtype, (hidden.shape[1],))]
        sums = head.zeros(parameters)
        sums, found = backend.over_chunks(step, sums, rows, head.size, kinds)
        d_parameters = tuple(
            _scaled(total, unit, x.dtype) for total, x in zip(sums, parameters)
        )
        return found[0], d_parameters, None

    fn = backend.custom_vjp(forward, backward)
    return fn(hidden, parameters, labels)


def weighted_loss(
    hidden, parameters, labels, weights, loss, metrics, gradients=(True, True)
):
    """Return the sum of weighted losses, and the new state of metrics.

    Gradients are computed with the loss, by three products of matrices. The
    backward pass multiplies them by one number, the cotangent.

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

    def forward(hidden, parameters, labels, weights, state, more):
        head = _Head(hidden, parameters, loss)
        weights = head.masked(ops.cast(weights, head.wide), labels)
        d, unit = head.normalized(weights)

        def step(carry, rows):
            state, sums = carry
            h, y, label, d, *more = rows
            z = head.logits(h)
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
        carry = state, head.zeros(parameters if of_parameters else ())
        (state, sums), (values, *d_hidden) = backend.over_chunks(
            step, carry, rows, head.size, kinds[: 1 + of_hidden]
        )
        values = head.poisoned(values, labels) * weights
        values = ops.where(ops.equal(weights, 0), 0.0, values)
        return (ops.sum(values), state), (unit, d_hidden, sums)

    def backward(residuals, cotangents):
        unit, d_hidden, sums = residuals
        factor = cotangents[0] if unit is None else cotangents[0] * unit
        of_first = [_scaled(d, factor, dtypes[0]) for d in d_hidden]
        of_others = tuple(
            _scaled(d, factor, dtype) for d, dtype in zip(sums, dtypes[1:])
        )
        return *(of_first or [None]), of_others or None, None, None, None, None

    fn = backend.custom_vjp(forward, backward)
    return fn(hidden, parameters, labels, weights, metrics.state, metrics.rows)


def _scaled(gradient, factor, dtype):
    if factor is not None:
        gradient = gradient * factor
    return ops.cast(gradient, dtype)


class _Head:
    """The last layer of a model, for a chunk of tokens at a time."""

    def __init__(self, hidden, parameters, loss):
        kernel, *bias = parameters
        self.loss = loss
        self.dtype = keras.backend.standardize_dtype(hidden.dtype)
        self.wide = "float64" if self.dtype == "float64" else "float32"
        self.vocabulary = kernel.shape[0 if loss.transpose else 1]
        self.size = loss.chunk_size or self._size(*hidden.shape)
        self.kernel = backend.operand(kernel, self.dtype)
        self.bias = ops.cast(bias[0], self.wide) if bias else None
        self.scratch = backend.scratch(self.kernel, self.size, self.vocabulary)

    def _size(self, tokens, width):
        """As many tokens as make logits of the size of the hidden states."""
        size = max(
            backend.ROWS_A_CHUNK, (tokens or 0) * width // self.vocabulary
        )
        return size if tokens is None else max(1, min(size, tokens))

    def logits(self, h):
        z = backend.product(
            backend.operand(h, self.dtype),
            self.kernel,
            transpose_b=self.loss.transpose,
            bias=self.bias,
            out=self.scratch,
        )
        cap = self.loss.soft_cap
        return z if cap is None else backend.soft_cap(z, cap)

    def cross_entropy(self, z, y, log_sum=None, d=None):
        """Return losses, the logarithms of the sums, and `dz`.

        Args:
            z: Logits, which may be overwritten.
            y: Integer tensor, labels within the vocabulary.
            log_sum: What an earlier call returned, or `None`.
            d: Cotangents of the losses; without them `dz` is `None`.
        """
        e, cap = self.loss.label_smoothing, self.loss.soft_cap
        if backend.cross_entropy is not None:
            return backend.cross_entropy(z, y, e, cap, log_sum, d)
        if log_sum is None:
            log_sum = ops.logsumexp(z, axis=-1)
        y = y[:, None]
        picked = ops.take_along_axis(z, y, axis=-1)[:, 0]
        losses = log_sum - (1 - e) * picked
        if e:
            losses = losses - e * ops.mean(z, axis=-1)
        if d is None:
            return losses, log_sum, None
        dz = ops.exp(z - log_sum[:, None]) - e / self.vocabulary
        hit = ops.equal(y, ops.arange(self.vocabulary, dtype=y.dtype))
        dz = ops.where(hit, dz - (1 - e), dz) * d[:, None]
        if cap is not None:
            dz = dz * (1 - ops.square(z / cap))
        return losses, log_sum, dz

    def pull(self, dz, h, sums, of_hidden=True):
        """Return the gradient of `h`, and those of parameters added to `sums`.

        No sums are for no gradients of parameters.
        """
        transpose = self.loss.transpose
        slope = backend.factor(dz, self.dtype)
        d_hidden = None
        if of_hidden:
            d_hidden = backend.product(
                slope, self.kernel, transpose_b=not transpose
            )
        if not sums:
            return d_hidden, sums
        h = backend.operand(h, self.dtype)
        pair = (slope, h) if transpose else (h, slope)
        total, *bias = sums
        total = backend.add_product(total, *pair)
        return d_hidden, (total, *(b + ops.sum(dz, axis=0) for b in bias))

    def zeros(self, parameters):
        return tuple(ops.zeros(x.shape, self.wide) for x in parameters)

    def normalized(self, d):
        """Return `d / unit` and `unit`, so that float16 can hold `dz`.

        Cotangents of about one by the number of tokens, times probabilities,
        would be lost in it.
        """
        if self.dtype != "float16":
            return d, None
        unit = ops.maximum(ops.max(ops.abs(d)) / 256, 1e-30)
        return d / unit, unit

    def index(self, labels):
        return ops.clip(labels, 0, self.vocabulary - 1)

    def masked(self, values, labels):
        if self.loss.ignore_class is None:
            return values
        ignored = ops.equal(labels, self.loss.ignore_class)
        return ops.where(ignored, 0.0, values)

    def poisoned(self, values, labels):
        fits = ops.equal(labels, self.index(labels))
        return ops.where(fits, values, float("nan"))
