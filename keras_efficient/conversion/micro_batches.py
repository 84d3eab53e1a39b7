import contextlib

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.conversion.arguments import check_model
from keras_efficient.models.chunked_training import ChunkedTraining


def micro_batches(model, n):
    """Make `fit` of a model run each batch in parts, in place.

    A batch that does not fit into memory is divided into `n` parts. A step
    runs them one after the other, sums their gradients and updates once: the
    activations of a part are there at a time. Unlike
    `gradient_accumulation_steps` of an optimizer, which keeps 4 bytes a
    parameter for ever, nothing outlives the step.

    Losses, gradients and metrics are those of the whole batch but for
    rounding, whatever `n` is: parts of unequal size, sample weights, masks and
    all reductions of a loss count as they do in the batch. Two things differ.
    `BatchNormalization` sees parts: it normalizes with their statistics.
    `Dropout` draws its masks part by part. A metric that is no sum or mean
    over examples sees parts, too.

    The model stays the object that it is; `evaluate` and `predict` run as
    before. It is a property of the object, not of what is saved. Call it
    before or after `compile` or `fit`, and together with
    `keras_efficient.recompute` and `keras_efficient.chunk_loss`. Where the
    output of a model has a mask, the masks of the whole batch are computed
    first; PyTorch runs the model forward once more for them.

    Args:
        model: A `keras.Model` with the training step of Keras.
        n: Integer, the number of parts. A batch of fewer examples has as many
            parts as examples. `1` undoes what was done before.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`, or `n` no integer.
        ValueError: `n` is less than 1, or the model has a training step of its
            own. The first step: it has several losses, and they are not all
            means over the examples.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    keras_efficient.micro_batches(model, 4)
    model.compile("adam", "mse")
    ```
    """
    check_model(model)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(
            f"`n` must be an integer, the number of parts. Received: n={n!r}"
        )
    if n < 1:
        raise ValueError(f"`n` must be at least 1. Received: n={n}")
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(
            f"{type(model)} has a method `train_step` of its own, which cannot "
            "be divided. Divide the batch there."
        )
    before = find(model, "train_step", MicroBatches)
    if before:
        before.run.__self__.remove()
    if n > 1:
        MicroBatches(model, n)
    model.train_function = None  # it was compiled for another model
    return model


class MicroBatches:
    """Makes a model run its training step in parts."""

    def __init__(self, model, n):
        self.model = model
        self.n = n
        self.division = self.share = None  # while a part runs
        self.replacements = [
            Replacement(model, "train_step", self._train_step),
            Replacement(model, "compute_loss", self._compute_loss),
        ]

    def remove(self):
        for replacement in self.replacements:
            replacement.remove()

    def _train_step(self, train_step, *args):
        chunked = ChunkedTraining.of(self.model)
        with contextlib.ExitStack() as stack:
            if chunked:
                stack.enter_context(chunked.within_step(args[-1]))
            return backend.divided_train_step(self.model, self, *args)

    def divide(self, data, call):
        """Return a `Division`, for `backend.divided_train_step`."""
        return Division(self.model, self.n, data, call)

    @contextlib.contextmanager
    def part(self, division, leaves):
        """The context in which a part runs. Gives `(x, y, sample_weight)`."""
        rows = ops.shape(leaves[0])[0]
        self.division, self.share = division, _ratio(rows, division.examples)
        try:
            yield division.pack(leaves)
        finally:
            self.division = self.share = None

    def _compute_loss(
        self,
        compute_loss,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        """Return what a part adds to the loss of the batch."""
        division, share = self.division, self.share
        if division is None:
            return compute_loss(x, y, y_pred, sample_weight, training)
        # Keras may multiply weights by a mask in place (3.15.1 on PyTorch).
        copied = keras.tree.map_structure(
            lambda w: None if w is None else ops.copy(w), sample_weight
        )
        loss = compute_loss(x, y, y_pred, copied, training)
        weight = division.weight(y, y_pred, sample_weight)
        # Losses that layers add count as means over examples.
        added = sum(ops.sum(loss) for loss in self.model.losses)
        return (loss - added) * (share if weight is None else weight) + (
            added * share
        )


class Division:
    """A batch, how it is divided, and how much the loss of each part counts.

    Args:
        model: A compiled `keras.Model`.
        n: Integer, the number of parts.
        data: What a training step gets.
        call: Function of the inputs, which runs the model.

    Attributes:
        leaves: List of the tensors of the batch.
        examples: Integer, or integer tensor in a graph.
        size: The same, the examples of a part.
    """

    def __init__(self, model, n, data, call):
        self.data = keras.utils.unpack_x_y_sample_weight(data)
        self.leaves = [
            ops.convert_to_tensor(leaf)
            for leaf in keras.tree.flatten(self.data)
            if leaf is not None
        ]
        self.examples = ops.shape(self.leaves[0])[0]
        self.size = (self.examples + n - 1) // n
        self.reduction, self.ignore_class, count = _loss_of(model)
        self.masked = _has_mask(model, call, self.data[0])
        self.total = None
        if self.reduction == "mean" and not self._counts():
            return
        if count > 1:
            raise ValueError(
                f"Model '{model.name}' has {count} losses, and masks or a "
                "reduction by which parts of a batch count differently in each "
                "of them. Several losses must be means over all examples: "
                'reduction="sum_over_batch_size", no masks, no `ignore_class`.'
            )
        if self.reduction != "sum":
            self.total = self._total(call)

    def _counts(self):
        return self.masked or self.ignore_class is not None

    def _total(self, call):
        _, y, sample_weight = self.data
        if not self.masked:
            return self.count(y, None, sample_weight)

        def step(total, leaves):
            x, y, sample_weight = self.pack(leaves)
            return total + self.count(y, call(x), sample_weight), ()

        zero = ops.zeros((), keras.config.floatx())
        return backend.over_chunks(step, zero, self.leaves, self.size, [])[0]

    def pack(self, leaves):
        leaves = iter(leaves)
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else next(leaves), self.data
        )

    def weight(self, y, y_pred, sample_weight):
        """How much the loss of a part counts; `None` if as its examples."""
        if self.reduction == "sum":
            return 1.0
        if self.total is None:
            return None
        count = self.count(y, y_pred, sample_weight)
        return ops.divide_no_nan(count, self.total)

    def count(self, y, y_pred, sample_weight):
        """What the loss of a part is divided by."""
        factors = [mask_of(y_pred)] if self.masked else []
        if self.ignore_class is not None:
            labels = keras.tree.flatten(y)[0]
            if factors and len(labels.shape) > len(factors[0].shape):
                labels = ops.squeeze(labels, -1)
            factors.append(ops.not_equal(labels, self.ignore_class))
        if self.reduction == "mean_with_sample_weight":
            factors += keras.tree.flatten(sample_weight)
        count = ops.ones((), keras.config.floatx())
        for factor in factors:
            count = count * ops.cast(factor, count.dtype)
        return ops.sum(count)


def _loss_of(model):
    """Return the reduction, the class to ignore and the number of losses."""
    losses = [x for x in keras.tree.flatten(model.loss) if x is not None]
    count = max(len(losses), len(getattr(model, "outputs", None) or ()))
    found = {_reduction(loss) for loss in losses} or {"mean"}
    if None in found:
        raise ValueError(
            f"The loss of model '{model.name}' must be reduced to a number. "
            "Received: reduction=None"
        )
    classes = {_ignored(x) for x in losses} - {None}
    reduction = found.pop() if len(found) == 1 else "several"
    return reduction, classes.pop() if classes else None, count


def _reduction(loss):
    found = getattr(loss, "reduction", "mean")
    if found in (None, "none"):
        return None
    return "mean" if found == "sum_over_batch_size" else found


def _ignored(loss):
    if not isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return None
    return loss.get_config().get("ignore_class")


def _has_mask(model, call, x):
    outputs = getattr(model, "outputs", None)
    if not outputs:  # a subclass of `keras.Model`
        one = keras.tree.map_structure(lambda x: x[:1], x)
        outputs = call(one)
    return any(mask_of(y) is not None for y in keras.tree.flatten(outputs))


def _ratio(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return a / b
    return ops.cast(a, keras.config.floatx()) / ops.cast(
        b, keras.config.floatx()
    )
