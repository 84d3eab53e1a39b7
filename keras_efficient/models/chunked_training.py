"""Training steps of a model whose logits are never whole."""

import contextlib

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.autodiff.record import is_recorded
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.models import vocabulary_head
from keras_efficient.models.chunked_metrics import ChunkedMetrics
from keras_efficient.ops.linear_cross_entropy import check_labels
from keras_efficient.ops.vocabulary_chunks import Loss
from keras_efficient.ops.vocabulary_chunks import weighted_loss


class ChunkedTraining:
    """Makes a model compute its loss from chunks of logits.

    While a step of `fit` or `evaluate` runs, or is traced, the last layer
    passes its inputs on. What the model returns then are hidden states, and
    `compute_loss` does the work of that layer, of the loss and of the metrics.
    It replaces methods of the model and of the layer, which stay what they are.

    Args:
        model: A `keras.Model`.
        head: Its last layer, a Dense or a ReversibleEmbedding.
        chunk_size: Integer, tokens at a time, or `None`.
        strict: Boolean. Whether a step that cannot be computed in chunks is an
            error; otherwise it is computed as before.
        cast: Boolean. Whether the model casts what the head returns.
    """

    def __init__(self, model, head, chunk_size=None, strict=False, cast=False):
        self.model = model
        self.head = head
        self.chunk_size = chunk_size
        self.strict = strict
        self.cast = cast
        self.active = False
        self.passed = []  # what the head has passed on in this step
        self.table = None  # tied embeddings, as the lookup passes them on
        self.metrics = None
        self.replacements = [
            Replacement(head, "call", self._head_call),
            Replacement(model, "train_step", self._step),
            Replacement(model, "test_step", self._step),
            Replacement(model, "compute_loss", self._compute_loss),
            Replacement(model, "compute_metrics", self._compute_metrics),
        ]

    @classmethod
    def of(cls, model):
        """Return what was made for a model, or `None`."""
        found = find(model, "train_step", cls)
        return found and found.run.__self__

    def remove(self):
        for replacement in self.replacements:
            replacement.remove()

    @contextlib.contextmanager
    def within_step(self, data):
        """The context in which steps on a batch are computed in chunks."""
        before = self.active, self.passed, self.table, self.metrics
        y = keras.utils.unpack_x_y_sample_weight(data)[1]
        reason = self.why_not() or self._prepare_metrics(y)
        if reason and self.strict:
            raise ValueError(
                f"The loss of model '{self.model.name}' cannot be computed in "
                f"chunks: {reason}. Or call `chunk_loss(model, None)`, which "
                "makes it compute its loss as before."
            )
        self.active, self.passed, self.table = not reason, [], None
        try:
            yield
        finally:
            self.active, self.passed, self.table, self.metrics = before

    def why_not(self):
        """Return why steps cannot be computed in chunks, or `None`."""
        for name in ("train_step", "compute_loss", "compute_metrics"):
            method = getattr(type(self.model), name)
            if method is not getattr(keras.Model, name):
                return f"{type(self.model)} has a method `{name}` of its own"
        return vocabulary_head.why_not_a_head(self.head) or why_not_a_loss(
            self.model.loss
        )

    def _prepare_metrics(self, y):
        vocabulary = vocabulary_head.vocabulary_of(self.head)
        self.metrics = ChunkedMetrics(self.model, y, vocabulary)
        return self.metrics.why_not()

    def _step(self, step, *args, **kwargs):
        with self.within_step(args[-1]):
            return step(*args, **kwargs)

    def _head_call(self, call, inputs, *args, **kwargs):
        is_last = vocabulary_head.makes_logits(self.head, args, kwargs)
        if not self.active:
            return call(inputs, *args, **kwargs)
        if not is_last:
            # What is made within a recorded call does not leave it.
            if not self.head.tie_weights or is_recorded():
                return call(inputs, *args, **kwargs)
            rows, self.table = vocabulary_head.look_up(self.head, inputs)
            return rows
        # Another tensor, whose mask is that of the logits.
        passed = ops.squeeze(ops.expand_dims(inputs, 0), 0)
        self.passed.append(passed)
        return passed

    def _compute_metrics(self, compute_metrics, *args, **kwargs):
        if not self.active:
            return compute_metrics(*args, **kwargs)
        return self.model.get_metrics_result()  # `compute_loss` updated them

    def _compute_loss(
        self,
        compute_loss,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        if not self.active:
            return compute_loss(x, y, y_pred, sample_weight, training)
        self._check_passed(y_pred)
        labels = _labels(y, y_pred)
        loss = _single(self.model.loss)
        ignore_class = loss.get_config().get("ignore_class")
        valid = None
        if ignore_class is not None:
            valid = ops.not_equal(labels, ignore_class)
        mask = mask_of(y_pred)

        def reduce(values, sample_weight):
            """What Keras makes of the losses of all tokens."""
            with _returning(loss, lambda: with_mask(ops.copy(values), valid)):
                predicted = with_mask(ops.copy(values), mask)
                return compute_loss(
                    x, labels, predicted, sample_weight, training
                )

        zeros = ops.zeros(ops.shape(labels), loss.dtype)
        # Losses that layers have added. Keras may multiply weights by a mask
        # in place (3.15.1 on PyTorch), as it does below, once.
        added = reduce(
            zeros,
            keras.tree.map_structure(
                lambda w: None if w is None else ops.copy(w), sample_weight
            ),
        )
        # It is linear, so that its gradient is the weight of each token.
        total, pull = backend.vjp(
            lambda values: reduce(values, sample_weight), zeros
        )
        (weights,) = pull(ops.ones_like(total))
        parameters, transpose = vocabulary_head.parameters_of(self.head)
        if self.table is not None:
            parameters = self.table, *parameters[1:]
        dtype = vocabulary_head.dtype_of(self.head)
        width = parameters[0].shape[1 if transpose else 0]
        flat = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
        vocabulary = vocabulary_head.vocabulary_of(self.head)
        check_labels(flat[0], vocabulary, ignore_class, flat[1])
        total, state = weighted_loss(
            ops.cast(ops.reshape(y_pred, (-1, width)), dtype),
            parameters,
            *flat,
            Loss(
                chunk_size=self.chunk_size,
                soft_cap=getattr(self.head, "logit_soft_cap", None),
                ignore_class=ignore_class,
                transpose=transpose,
            ),
            self.metrics.of_chunks(labels, sample_weight, mask, training),
            (training, training and vocabulary_head.is_trainable(self.head)),
        )
        self.metrics.assign(state)
        return total + added

    def _check_passed(self, y_pred):
        passed, self.passed = self.passed, []
        name = self.head.name
        if len(passed) != 1:
            raise ValueError(
                f"Layer '{name}' must make the logits of model "
                f"'{self.model.name}', by one call a step. It was called "
                f"{len(passed)} times. Name another layer: "
                "`chunk_loss(model, head=...)`."
            )
        if y_pred is not passed[0] and not self.cast:
            raise ValueError(
                f"Model '{self.model.name}' must return what layer '{name}' "
                "returns, logits, and nothing else. Name the layer that makes "
                "them, `chunk_loss(model, head=...)`, or leave the model as it "
                "is, `chunk_loss(model, None)`."
            )


def why_not_a_loss(loss):
    """Return why a loss cannot be computed in chunks, or `None`."""
    found = _single(loss)
    expected = (
        "it must be compiled with one loss, "
        "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`"
    )
    if type(found) is not keras.losses.SparseCategoricalCrossentropy:
        return f"{expected}. Received: loss={loss}"
    config = found.get_config()
    if not config["from_logits"]:
        return f"{expected}. Received one with from_logits=False"
    if config.get("axis", -1) != -1:
        return f"{expected}. Received one with axis={config['axis']}"
    if config["reduction"] in (None, "none"):
        return f"{expected}. Received one with reduction=None"
    return None


def _single(structure):
    """The only leaf of a nested structure, or `None`."""
    leaves = keras.tree.flatten(structure)
    return leaves[0] if len(leaves) == 1 else None


def _labels(y, y_pred):
    labels, shape = _single(y), y_pred.shape[:-1]
    expected = tuple(shape)
    if labels is None:
        raise ValueError(f"Labels must be one tensor. Received: y={y}")
    found = tuple(labels.shape)
    if found == (*expected, 1):
        labels = ops.squeeze(labels, -1)
    elif len(found) != len(expected) or any(
        m != n and None not in (m, n) for m, n in zip(found, expected)
    ):
        raise ValueError(
            "Labels must be integers, one for each token: of shape "
            f"{expected}. Received: shape {found}"
        )
    return ops.cast(labels, "int32")


@contextlib.contextmanager
def _returning(loss, make):
    """Within, `loss` returns these losses, and reduces them as its own."""
    loss.call = lambda y_true, y_pred: make()
    try:
        yield
    finally:
        del loss.call
