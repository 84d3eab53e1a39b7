import numpy as np

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.callbacks.callback_state import StatefulCallback
from keras_efficient.callbacks.item_response import ability
from keras_efficient.callbacks.per_example_callback import begin_epoch
from keras_efficient.callbacks.per_example_callback import check_dataset
from keras_efficient.callbacks.per_example_callback import classes
from keras_efficient.callbacks.per_example_callback import predictions


class AbilityCurriculum(StatefulCallback):
    """Train on examples that are no harder than the model is able.

    It saves neither memory nor, by itself, time: an epoch has as many steps as
    before, on fewer examples at first.

    Difficulties are those of item response theory, on a scale on which models
    have abilities: see `keras_efficient.utils.item_difficulties`. Before each
    epoch the model answers validation examples, and its ability is the most
    probable theta under P(right) = sigmoid(theta - b) and a prior N(0, 1):

    ```
    if theta > best:  current = best = theta      else:  current += step
    selection = {i: b_i <= current + upper}, at least the easiest ones
    ```

    The step is the authors' way out of an ability that stands still; after it
    the curriculum goes on to all examples in any case. Their selection is in
    order of difficulty; here it is shuffled by the dataset. Each epoch adds
    `ability` and `selected`, a number of examples, to the logs.

    Put it before `keras.callbacks.BackupAndRestore`: a run that was
    interrupted goes on with its ability.

    Args:
        dataset: The `keras_efficient.utils.SelectableDataset` that is trained
            on.
        difficulties: Array of one float an example of it.
        validation: Triple `(x, labels, difficulties)`. Labels are integers or
            one-hot; the class that the model says is its largest output.
        step: Non-negative float. Defaults to `0.1`.
        min_examples: Positive integer: the easiest ones that are always
            selected. Defaults to `100`.
        upper: Float. Defaults to `0.0`.
        balanced: Whether `min_examples` are as many of each class, since the
            easiest may be of one. Defaults to `False`.

    Raises:
        TypeError: `dataset` is not such a dataset.
        ValueError: an argument is outside its range, or lengths differ.

    Example:

    ```python
    x = np.random.normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    difficulties = -np.abs(x[:, 0])
    dataset = keras_efficient.utils.SelectableDataset(x, y)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(2, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    callback = keras_efficient.callbacks.AbilityCurriculum(
        dataset, difficulties, (x, y, difficulties), min_examples=16
    )
    model.fit(dataset, epochs=3, callbacks=[callback])
    ```

    Reference:
        - [Meng et al., 2024](https://arxiv.org/abs/2408.05326)
    """

    STATE = "_ability_curriculum"

    def __init__(
        self,
        dataset,
        difficulties,
        validation,
        step=0.1,
        min_examples=100,
        upper=0.0,
        balanced=False,
    ):
        super().__init__()
        check_dataset(dataset, "AbilityCurriculum")
        self.dataset, self.upper, self.step = dataset, upper, step
        self.min_examples, self.balanced = min_examples, balanced
        check_numbers("[0, inf)", step=step)
        check_numbers("(-inf, inf)", upper=upper)
        check_integers(1, min_examples=min_examples)
        self.difficulties = as_array(difficulties, "float64")
        x, labels, b = validation
        self._x, self._labels = x, classes(labels)
        self._difficulties = as_array(b, "float64")
        for name, array, size in (
            ("difficulties", self.difficulties, dataset.num_examples),
            ("validation", self._difficulties, len(self._labels)),
        ):
            if array.shape != (size,) or not np.isfinite(array).all():
                raise ValueError(
                    f"`{name}` must have one finite difficulty for each of "
                    f"{size} examples. Received: shape {array.shape}"
                )
        self._always = self._easiest()
        self._reset()

    def _easiest(self):
        order = np.argsort(self.difficulties, kind="stable")
        if not self.balanced:
            return order[: self.min_examples]
        labels = classes(self.dataset.targets)[order]
        names = np.unique(labels)
        each = -(-self.min_examples // len(names))
        return np.concatenate([order[labels == c][:each] for c in names])

    def _reset(self):
        self._best = self._current = -np.inf
        self.dataset.selection = np.arange(self.dataset.num_examples)

    def on_epoch_begin(self, epoch, logs=None):
        begin_epoch(self.dataset, epoch)
        outputs = predictions(self.model, self._x, self.dataset.batch_size)
        right = outputs.argmax(-1) == self._labels
        self._go_on(float(ability(right, self._difficulties)))
        selected = self.difficulties <= self._current + self.upper
        selected[self._always] = True
        self.dataset.selection = np.flatnonzero(selected)

    def _go_on(self, theta):
        if theta > self._best:
            self._best = self._current = theta
        else:
            self._current += self.step

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["ability"] = self._current
            logs["selected"] = len(self.dataset.selection)

    def _state(self):
        return {}, {"best": self._best, "current": self._current}

    def _restore(self, arrays, facts):
        self._best, self._current = facts["best"], facts["current"]
