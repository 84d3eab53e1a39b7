import math

import keras
import numpy as np
from keras import ops

from keras_efficient.callbacks.average_weights import assign_all
from keras_efficient.callbacks.average_weights import host_copies
from keras_efficient.optimizers import LDAdam
from keras_efficient.optimizers import MicroAdam
from keras_efficient.optimizers.dense import dense
from keras_efficient.optimizers.names import path_of

LARGEST_PART = 0.1  # of a block, that enters MicroAdam's window
UNITS = 10_000  # that a budget is divided into


def layer_budgets(
    model,
    batches,
    optimizer="MicroAdam",
    bytes_per_parameter=0.9,
    floor=1,
):
    """Divide the bytes of an optimizer's state among the tensors of a model.

    Some gradients are said with few numbers, and some are not. Of each
    tensor, what is lost with every setting is computed from a mean gradient,
    and settings are chosen whose sum of losses is the least within the
    budget:

    ```
    MicroAdam  error(k) = sum over blocks of |g - its k largest entries|^2
    LDAdam     error(r) = sum of the squares of singular values beyond r
    min sum error   subject to   sum bytes <= bytes_per_parameter * parameters
    ```

    by dynamic programming, in ten thousandths of the budget. It answers the
    question that L-GreCo asks the other way round. The instantaneous error is
    a stand-in for what training loses, since error feedback gives much of it
    back: measure before you rely on it. Gradients change, too: call this
    after a warm-up rather than on new weights, and make the optimizer then.

    The model is left as it was: weights, statistics and seeds.

    Args:
        model: A compiled `keras.Model`.
        batches: List of batches for `model.train_on_batch`, `(x, y)` or
            `(x, y, sample_weight)`, at least one.
        optimizer: `"MicroAdam"` or `"LDAdam"`, with their defaults but for
            what is chosen. Defaults to `"MicroAdam"`.
        bytes_per_parameter: Float, of the tensors that are compressed.
            Defaults to `0.9`.
        floor: Integer, the least k or rank. Defaults to `1`.

    Returns:
        Dictionary from the path of each tensor that is compressed to its
        density, for `MicroAdam(density=...)`, or its rank, for
        `LDAdam(rank=...)`.

    Raises:
        ValueError: the model is not compiled or has no tensor to compress,
            or the budget is less than what `floor` takes.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128)])
    model.compile("sgd", "mse")
    x, y = keras.random.normal((8, 64)), keras.random.normal((8, 128))
    budget = keras_efficient.utils.layer_budgets(model, [(x, y)])
    model.compile(keras_efficient.optimizers.MicroAdam(density=budget), "mse")
    ```

    Reference:
        - L-GreCo, [Alimohammadi et al., 2022](https://arxiv.org/abs/2210.17357)
    """
    kinds = {"MicroAdam": micro_adam_settings, "LDAdam": ld_adam_settings}
    if optimizer not in kinds:
        raise ValueError(
            f"`optimizer` must be one of {list(kinds)}. "
            f"Received: optimizer={optimizer}"
        )
    batches = list(batches)
    if not batches or model.optimizer is None:
        raise ValueError(
            "`model` must be compiled, and `batches` not empty. Received: "
            f"{len(batches)} batches, optimizer {model.optimizer}"
        )
    variables, gradients = mean_gradients(model, batches)
    names, errors, sizes, settings = [], [], [], []
    parameters = 0
    for variable, gradient in zip(variables, gradients):
        row = kinds[optimizer](variable, gradient, floor)
        if row is not None:
            names.append(path_of(variable))
            parameters += gradient.size
            for column, value in zip((errors, sizes, settings), row):
                column.append(value)
    if not names:
        raise ValueError(
            f"`model` must have tensors that `{optimizer}` compresses. "
            f"'{model.name}' has none."
        )
    chosen = allocate(errors, sizes, bytes_per_parameter * parameters)
    return {
        name: values[place]
        for name, values, place in zip(names, settings, chosen)
    }


def micro_adam_settings(variable, gradient, floor):
    """Return errors, bytes and densities for each k."""
    optimizer = MicroAdam()
    if not optimizer._is_compressible(variable):
        return None
    size, window = optimizer.block_size, optimizer.window
    g = gradient.reshape(-1)
    g = np.pad(g, (0, -g.size % size)).reshape(-1, size)
    squares = np.sort(g**2, axis=1)[:, ::-1].sum(axis=0)
    largest = max(floor, math.ceil(LARGEST_PART * size))
    ks = np.arange(floor, largest + 1)
    errors = squares.sum() - np.cumsum(squares)[ks - 1]
    # Codes of four bits with two borders a bucket, a second moment a block;
    # then rows of a byte and a bfloat16 for each of k entries.
    fixed = gradient.size * (0.5 + 4 / optimizer.bucket_size) + 4 * len(g)
    return errors, fixed + 3.0 * window * len(g) * ks, list(ks / size)


def ld_adam_settings(variable, gradient, floor):
    """Return errors, bytes and ranks."""
    optimizer = LDAdam(rank=floor)
    if not optimizer._is_compressible(variable):
        return None
    g = gradient.reshape(-1, gradient.shape[-1])
    short, long = sorted(g.shape)
    squares = np.linalg.svd(g, compute_uv=False) ** 2
    ranks = np.arange(floor, short + 1)
    errors = np.maximum(squares.sum() - np.cumsum(squares)[ranks - 1], 0.0)
    fixed = gradient.size * (0.5 + 4 / optimizer.bucket_size)
    sizes = fixed + 4.0 * ranks * (short + 2 * long)
    return errors, sizes, [int(rank) for rank in ranks]


def allocate(errors, sizes, budget):
    """Choose one of the settings of each tensor: least error in a budget.

    ```
    best[l][t] = min over q of  best[l - 1][t - size[l][q]] + error[l][q]
    ```

    Sizes are counted in units, rounded up: of a common divisor, or a ten
    thousandth of what the budget leaves. Sizes that have a divisor of more
    than that are counted exactly.

    Args:
        errors: List of arrays, for each tensor the error of each setting.
        sizes: List of arrays, their bytes, from small to large.
        budget: Float, in bytes.

    Returns:
        List of the places of what is chosen.

    Raises:
        ValueError: the smallest settings exceed the budget.
    """
    least = sum(size[0] for size in sizes)
    if least > budget:
        raise ValueError(
            "`bytes_per_parameter` must be enough for `floor`. Received: a "
            f"budget of {budget:.0f} bytes, where that takes {least:.0f}"
        )
    rest = budget - least
    extra = [np.asarray(size) - size[0] for size in sizes]
    divisor = math.gcd(*(round(x) for row in extra for x in row))
    unit = max(divisor, rest / UNITS, 1e-9)
    count = int(rest / unit + 1e-9)
    best, choices = np.zeros(count + 1), []
    for error, size in zip(errors, extra):
        units = np.ceil(size / unit - 1e-9).astype(int)
        table = np.full((len(units), count + 1), np.inf)
        for row, (e, u) in enumerate(zip(error, units)):
            if u <= count:
                table[row, u:] = best[: count + 1 - u] + e
        choices.append((table.argmin(axis=0), units))
        best = table.min(axis=0)
    chosen, t = [], count
    for places, units in reversed(choices):
        chosen.append(int(places[t]))
        t -= units[places[t]]
    return chosen[::-1]


def mean_gradients(model, batches):
    """Return the trainable variables of a model and their mean gradients.

    Args:
        model: A compiled `keras.Model`, left as it was.
        batches: List of tuples for `model.train_on_batch`.

    Returns:
        `(variables, gradients)`, the latter arrays in float64.
    """
    variables = model.trainable_variables
    state = model.non_trainable_variables
    before, optimizer = host_copies(state), model.optimizer
    summing = _Sum()
    summing.build(variables)
    try:
        model.optimizer = summing
        model.train_function = None  # it was compiled for the optimizer
        for batch in batches:
            model.train_on_batch(*batch)
    finally:
        model.optimizer = optimizer
        model.train_function = None
        assign_all(state, before)
        model.reset_metrics()
    sums = host_copies(summing.sums)
    return variables, [x.astype("float64") / len(batches) for x in sums]


class _Sum(keras.optimizers.Optimizer):
    """Adds gradients up instead of stepping."""

    def __init__(self):
        super().__init__(learning_rate=0.0)

    def build(self, variables):
        super().build(variables)
        self.sums = [
            self.add_variable(variable.shape, "zeros", "float32")
            for variable in variables
        ]

    def apply(self, grads, trainable_variables=None):
        variables = trainable_variables or self._trainable_variables
        for gradient, variable in zip(grads, variables):
            if gradient is not None:
                total = self.sums[self._get_variable_index(variable)]
                total.assign(total + ops.cast(dense(gradient), "float32"))
