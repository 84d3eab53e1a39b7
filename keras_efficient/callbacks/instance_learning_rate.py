import math

import keras
import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.callbacks.callback_state import StatefulCallback
from keras_efficient.callbacks.per_example_callback import begin_epoch
from keras_efficient.callbacks.per_example_callback import check_dataset
from keras_efficient.callbacks.per_example_callback import losses_of_examples
from keras_efficient.callbacks.per_example_callback import predictions

REACH = 5e-3  # of a step along the gradient, as a part of the weights' norm


class InstanceLearningRate(StatefulCallback):
    """Learn a learning rate for each example, such as none for wrong labels.

    It saves neither memory nor time, and needs a few examples that can be
    trusted and are not trained on. An epoch takes a backward pass over these
    and two more `predict` passes over the training set.

    The rates c_i are handed out as `sample_weight`. The gradient of what the
    trusted examples lose, v, says which examples help:

    ```
    s_i = <v, gradient of loss_i>
        = (loss_i(w + h v) - loss_i(w - h v)) / 2h  + O(h^2)
    c_i <- min(max_rate, max(0, c_i + rate s_i / mean|s|)),  then  c / mean(c)
    ```

    The differences stand for the products, so that no gradient of a single
    example is needed. It differs from the paper, which takes the products in
    each step for the examples of the batch: here they are taken once an epoch
    for all, in inference mode, and divided by the mean of their sizes, so that
    `rate` means the same for each model. Once the trusted examples are
    learned, products are noise: a large `rate` then undoes what it has done.
    The mean of 1 keeps a common factor from being learned, which Adam would
    cancel.

    Put it before `keras.callbacks.BackupAndRestore`: a run that was
    interrupted goes on with its rates.

    Args:
        dataset: The `keras_efficient.utils.SelectableDataset` that is trained
            on. Its `sample_weight` becomes the rates.
        meta_data: Pair of arrays `(x, targets)`, the trusted examples.
        rate: Positive float, by how much a rate of 1 changes an epoch, for a
            typical example. Defaults to `0.1`.
        interval: Positive integer, of epochs. Defaults to `1`.
        max_rate: Float above 1. Defaults to `10.0`.

    Raises:
        TypeError: `dataset` is not such a dataset.
        ValueError: a number is outside its range, or the model has several
            outputs or losses.

    Example:

    ```python
    x = np.random.normal(size=(64, 8)).astype("float32")
    y = x[:, :1]
    dataset = keras_efficient.utils.SelectableDataset(x, y)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = keras_efficient.callbacks.InstanceLearningRate(
        dataset, meta_data=(x[:8], y[:8])
    )
    model.fit(dataset, epochs=3, callbacks=[callback])
    print(dataset.sample_weight)
    ```

    Reference:
        - [Saxena et al., 2021](https://arxiv.org/abs/2105.13464)
    """

    STATE = "_instance_learning_rate"

    def __init__(self, dataset, meta_data, rate=0.1, interval=1, max_rate=10.0):
        super().__init__()
        check_dataset(dataset, "InstanceLearningRate")
        self.dataset, self.meta_data = dataset, meta_data
        self.rate, self.interval, self.max_rate = rate, interval, max_rate
        check_numbers("(0, inf)", rate=rate)
        check_numbers("(1, inf)", max_rate=max_rate)
        check_integers(1, interval=interval)
        # Before `fit` looks at what a batch is made of.
        dataset.sample_weight = np.ones(dataset.num_examples, "float32")

    def _reset(self):
        self.dataset.sample_weight = np.ones(
            self.dataset.num_examples, "float32"
        )

    def on_epoch_begin(self, epoch, logs=None):
        begin_epoch(self.dataset, epoch)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.interval:
            return
        products = self.products()
        size = np.abs(products).mean()
        if not 0 < size < math.inf:
            return
        rates = self.dataset.sample_weight + self.rate * products / size
        rates = np.clip(rates, 0, self.max_rate)
        if rates.mean() > 0:
            self.dataset.sample_weight = (rates / rates.mean()).astype(
                "float32"
            )

    def products(self):
        """Return the s_i, an array of one float32 an example."""
        variables = self.model.trainable_variables
        gradient = self._meta_gradient(variables)
        values = [
            np.array(ops.convert_to_numpy(v), dtype="float64")
            for v in variables
        ]
        size = math.sqrt(sum(float((g**2).sum()) for g in gradient))
        if not 0 < size < math.inf:
            return np.zeros(self.dataset.num_examples, "float32")
        norm = math.sqrt(sum(float((v**2).sum()) for v in values))
        h = REACH * max(norm, 1) / size
        losses = []
        try:
            for side in (h, -h):
                for variable, value, g in zip(variables, values, gradient):
                    variable.assign(value + side * g)
                losses.append(self._losses())
        finally:
            for variable, value in zip(variables, values):
                variable.assign(value)
        return (losses[0] - losses[1]) / np.float32(2 * h)

    def _losses(self):
        data = self.dataset
        outputs = predictions(self.model, data.x, data.batch_size)
        each = losses_of_examples(self.model, data.targets, outputs)
        return ops.convert_to_numpy(each)

    def _meta_gradient(self, variables):
        """Return the gradient of the mean loss of the trusted examples."""
        x, targets = self.meta_data
        total = [np.zeros(v.shape) for v in variables]
        for start in range(0, len(targets), self.dataset.batch_size):
            part = slice(start, start + self.dataset.batch_size)

            def loss(values):
                inputs = keras.tree.map_structure(
                    lambda array: ops.convert_to_tensor(array[part]), x
                )
                with keras.StatelessScope(zip(variables, values)):
                    outputs = self.model(inputs, training=False)
                    each = losses_of_examples(
                        self.model, targets[part], outputs
                    )
                return ops.sum(each)

            value, pullback = backend.vjp(loss, [v.value for v in variables])
            (gradient,) = pullback(ops.ones_like(value))
            for whole, part_of_it in zip(total, gradient):
                whole += ops.convert_to_numpy(part_of_it)
        return [g / len(targets) for g in total]

    def _state(self):
        return {"rates": self.dataset.sample_weight}, {}

    def _restore(self, arrays, facts):
        self.dataset.sample_weight = arrays["rates"]
