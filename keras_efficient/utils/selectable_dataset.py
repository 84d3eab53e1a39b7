import keras
import numpy as np

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers


class SelectableDataset(keras.utils.PyDataset):
    """Give batches of examples whose targets, weights and choice may change.

    It saves neither memory nor time: all examples are NumPy arrays in the host,
    and batches are not prefetched by other processes.

    Callbacks that treat each example in its own way write to the attributes
    `targets`, `sample_weight` and `selection` between epochs; the next epoch
    has what they say. The number of steps stays the same, since Keras asks for
    it once: an epoch takes all selected examples, in an order of its own, and
    begins again while there are steps to be done. That order depends on
    `seed` and `epoch` alone, so that a run that was interrupted goes on with
    the same batches when a callback of this package counts the epochs.

    Call `fit` without `steps_per_epoch`, which would let one epoch read on in
    the batches of the one before, and with `shuffle=False` where a run is to be
    repeated bit for bit: Keras shuffles the batches of a dataset once more.

    Attributes:
        targets: Array of one target an example.
        sample_weight: Array of float32, one weight an example, or `None`.
        selection: Array of the indices that are trained on, or of a boolean
            for each example.
        epoch: The number of the epoch that begins next.

    Args:
        x: Array of examples, or a nested structure of such arrays.
        targets: Array of as many targets.
        sample_weight: Array of as many weights. Defaults to `None`, none.
        batch_size: Positive integer. Defaults to `32`.
        steps_per_epoch: Positive integer, of full batches. Defaults to `None`,
            as many steps as show each example once.
        shuffle: Whether the order is drawn anew in each epoch. Defaults to
            `True`.
        seed: Integer. Defaults to `0`.

    Raises:
        ValueError: arrays differ in length or are empty, or a number is not
            positive.

    Example:

    ```python
    x, y = np.random.normal(size=(64, 8)), np.zeros((64, 1))
    dataset = keras_efficient.utils.SelectableDataset(x, y, batch_size=16)
    dataset.selection = np.arange(32)  # the first half, twice an epoch
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(dataset, epochs=2)
    ```
    """

    def __init__(
        self,
        x,
        targets,
        sample_weight=None,
        batch_size=32,
        steps_per_epoch=None,
        shuffle=True,
        seed=0,
    ):
        super().__init__()
        self.x = keras.tree.map_structure(as_array, x)
        self.targets = as_array(targets)
        self.sample_weight = sample_weight
        if sample_weight is not None:
            self.sample_weight = as_array(sample_weight, "float32")
        lengths = {len(a) for a in keras.tree.flatten(self.x)}
        lengths.add(len(self.targets))
        if sample_weight is not None:
            lengths.add(len(self.sample_weight))
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                "`x`, `targets` and `sample_weight` must be arrays of as many "
                f"examples, at least one. Received: lengths {sorted(lengths)}"
            )
        check_integers(1, batch_size=batch_size)
        if steps_per_epoch is not None:
            check_integers(1, steps_per_epoch=steps_per_epoch)
        check_integers(0, seed=seed)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.steps_per_epoch = steps_per_epoch
        self.selection = np.arange(len(self.targets))
        self.epoch = 0
        self._order = self._next_order()

    @property
    def num_examples(self):
        """The number of examples, whether selected or not."""
        return len(self.targets)

    @property
    def num_batches(self):
        return self.steps_per_epoch or -(-self.num_examples // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self._order[start : start + self.batch_size]
        x = keras.tree.map_structure(lambda array: array[rows], self.x)
        if self.sample_weight is None:
            return x, self.targets[rows]
        return x, self.targets[rows], self.sample_weight[rows]

    def on_epoch_begin(self):
        self._order = self._next_order()
        self.epoch += 1

    def _next_order(self):
        selection = np.asarray(self.selection)
        if selection.dtype == bool and len(selection) == self.num_examples:
            selection = np.flatnonzero(selection)
        if not (
            len(selection)
            and selection.dtype.kind in "iu"
            and 0 <= selection.min() <= selection.max() < self.num_examples
        ):
            raise ValueError(
                "`selection` must hold at least one index, each below the "
                f"number of examples, {self.num_examples}; or a boolean for "
                f"each example. Received: selection={self.selection}"
            )
        size = self.num_examples
        if self.steps_per_epoch:
            size = self.steps_per_epoch * self.batch_size
        random = np.random.default_rng([self.seed, self.epoch])
        draw = random.permutation if self.shuffle else np.asarray
        rounds = -(-size // len(selection))
        return np.concatenate([draw(selection) for _ in range(rounds)])[:size]
