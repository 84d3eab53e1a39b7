"""The metrics that a model was compiled with, from chunks of its logits."""

import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.ops.vocabulary_chunks import Metrics

# Two sequences of three tokens, and how they are cut for the trial.
_SHAPE, _CUT = (2, 3), 4


class ChunkedMetrics:
    """Updates metrics with a chunk of tokens at a time.

    A metric of Keras is told of a batch `(examples, tokens)`; here it sees the
    tokens one after the other as if they were examples. A sum over tokens stays
    the same. A mean over the tokens of each example, as most metrics begin
    with, becomes a sum, which is divided by the number of tokens at the end. A
    small trial tells which of the two a metric is, or whether it is neither.

    Args:
        model: A compiled `keras.Model`.
        y: The labels of a batch.
        vocabulary: Integer, the number of logits of a token.
    """

    def __init__(self, model, y, vocabulary):
        self.metric = next(
            (m for m in model.metrics if m.name == "compile_metrics"), None
        )
        self.variables, self.is_mean = [], []
        self.reason = None
        if self.metric is None:
            return
        shape = tuple(y.shape) if hasattr(y, "shape") else ()
        if not self.metric.built:
            ones = (1,) * len(shape)
            self.metric.build(
                ops.zeros(ones, "int32"), ops.zeros((*ones, vocabulary))
            )
        rank = len(shape) - (shape[-1:] == (1,))
        known = vars(self.metric).setdefault("_of_chunks", {})
        if (rank > 1) not in known:
            known[rank > 1] = _try(self.metric, rank > 1, vocabulary)
        self.is_mean, self.reason = known[rank > 1]
        self.variables = self.metric.variables

    def why_not(self):
        return self.reason

    def of_chunks(self, labels, sample_weight, mask, training):
        """Return what `weighted_loss` takes, or `None`."""
        if not self.variables:
            return None
        state = tuple(
            ops.zeros(v.shape, v.dtype) if is_mean else _value(v)
            for v, is_mean in zip(self.variables, self.is_mean)
        )
        shape = ops.shape(labels)
        self.tokens = 1
        for size in shape[1:]:
            self.tokens = self.tokens * size
        rows = []
        masked = mask is not None and not (
            training and backend.gradients_lose_masks
        )
        if masked:
            rows.append(ops.broadcast_to(ops.cast(mask, "bool"), shape))
        weighted = sample_weight is not None
        if weighted:
            rows.append(_broadcast(sample_weight, labels))

        def update(state, labels, logits, *rows):
            if masked:
                logits = with_mask(logits, rows[0])
            found = self.metric.stateless_update_state(
                list(state),
                labels,
                logits,
                sample_weight=rows[-1] if weighted else None,
            )
            return tuple(map(_value, found))

        rows = tuple(ops.reshape(x, (-1,)) for x in rows)
        return Metrics(update, state, rows)

    def assign(self, state):
        """Write the new state."""
        for v, x, is_mean in zip(self.variables, state, self.is_mean):
            if is_mean:
                x = _value(v) + x / ops.cast(self.tokens, x.dtype)
            v.assign(x)


def _value(x):
    return ops.convert_to_tensor(x)


def _broadcast(weights, labels):
    weights = ops.convert_to_tensor(weights)
    if len(weights.shape) > len(labels.shape):
        weights = ops.squeeze(weights, -1)
    while len(weights.shape) < len(labels.shape):
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(labels))


def _try(metric, sequences, vocabulary):
    """Return for each variable whether it is of means, and why not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, vocabulary, 6)
    logits = rng.normal(size=(6, vocabulary)).astype("float32")
    weights = rng.uniform(0.5, 1.5, 6).astype("float32")
    cuts = slice(0, _CUT), slice(_CUT, None)
    shape = _SHAPE if sequences else (6,)
    whole = [
        labels.reshape(shape),
        logits.reshape(*shape, vocabulary),
        weights.reshape(shape),
    ]
    chunks = [[x[cut] for x in (labels, logits, weights)] for cut in cuts]
    with backend.eagerly():
        pairs = [
            (_run(metric, [whole], weighted), _run(metric, chunks, weighted))
            for weighted in (False, True)
        ]
    is_mean = []
    for m in metric.metrics:
        part = slice(len(is_mean), len(is_mean) + len(m.variables))
        if all(_close(a[part], b[part], 1) for a, b in pairs):
            is_mean += [False] * len(m.variables)
        elif all(_close(a[part], b[part], 3) for a, b in pairs):
            is_mean += [True] * len(m.variables)
        else:
            return [], (
                f"the metric '{m.name}' is neither a sum nor a mean over "
                "tokens, so that it needs all logits of a batch"
            )
    return is_mean, None


def _run(metric, parts, weighted):
    state = [ops.zeros(v.shape, v.dtype) for v in metric.variables]
    for labels, logits, weights in parts:
        state = metric.stateless_update_state(
            state,
            ops.convert_to_tensor(labels, "int32"),
            ops.convert_to_tensor(logits),
            sample_weight=ops.convert_to_tensor(weights) if weighted else None,
        )
    return [np.asarray(ops.convert_to_numpy(x), "float64") for x in state]


def _close(at_once, in_parts, factor):
    return all(
        np.allclose(factor * x, y, 1e-4, 1e-6)
        for x, y in zip(at_once, in_parts)
    )
