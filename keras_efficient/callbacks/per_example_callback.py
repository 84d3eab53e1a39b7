"""What callbacks that treat each example in its own way have in common."""

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import as_array


def begin_epoch(dataset, epoch):
    """Let a `utils.SelectableDataset` know which epoch begins.

    Raises:
        ValueError: it took no part in the epoch before.
    """
    before = getattr(dataset, "begun", None)
    if before == epoch - 1 and dataset.epoch == before:
        raise ValueError(
            "`fit` must train on the dataset that its callback was given, "
            "without `steps_per_epoch`. Received: another dataset, or arrays"
        )
    dataset.epoch = dataset.begun = epoch


def check_dataset(dataset, owner):
    """Raise a `TypeError` unless this is a `utils.SelectableDataset`."""
    needs = ("x", "targets", "sample_weight", "selection", "epoch")
    if not all(hasattr(dataset, name) for name in needs):
        raise TypeError(
            f"`{owner}` needs the `keras_efficient.utils.SelectableDataset` "
            f"that `fit` trains on. Received: {type(dataset).__name__}"
        )


def predictions(model, x, batch_size):
    """Return the outputs for all examples, in order, as float32 arrays."""
    outputs = model.predict(x, batch_size=batch_size, verbose=0)
    if not isinstance(outputs, np.ndarray):
        raise ValueError(
            "The model must have one output. Received: "
            f"{keras.tree.map_structure(np.shape, outputs)}"
        )
    return outputs.astype("float32")


def classes(labels):
    """Return integer classes of labels that are integers or one-hot."""
    labels = as_array(labels)
    if labels.ndim > 1 and labels.shape[-1] > 1:
        return labels.argmax(-1)
    return labels.reshape(-1).astype("int64")


def losses_of_examples(model, targets, outputs):
    """Return the loss of each example by itself, as a tensor."""
    loss = keras.losses.get(model.loss)
    loss = getattr(loss, "call", loss)  # before a reduction
    if not callable(loss):
        raise ValueError(
            "The model must be compiled with one loss. Received: "
            f"loss={model.loss!r}"
        )
    targets = ops.convert_to_tensor(targets)
    outputs = ops.convert_to_tensor(outputs)
    if len(targets.shape) == len(outputs.shape) - 1 and outputs.shape[-1] == 1:
        targets = ops.expand_dims(targets, -1)
    each = ops.cast(loss(targets, outputs), "float32")
    return ops.mean(ops.reshape(each, (each.shape[0], -1)), axis=-1)
