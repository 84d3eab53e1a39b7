"""A row of the table of our own small layers, and all that is asked of it.

One program a row: copies of the layer that train, predict (from a file), are
recomputed in a reversible run and compute in mixed precision, side by side. An
oracle in NumPy gives their values, and, by differences in float64, their
gradients.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import GRAPH
from tests.gradients import gradient_step

STEP = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


class Own(NamedTuple):
    """A layer with its oracle.

    Attributes:
        make: Function that returns the layer.
        x: Array, the input.
        oracle: `oracle(w, x, training)` returns the output, or a tuple of it
            and of what the layer adds to the loss. `w` is a dictionary from
            names of weights, without numbers and the name of the layer.
        surrogate: The same, where the gradient is that of another function.
            It gets `fixed=(w, x)`, too: the place of what has no gradient.
        state: `state(w, x, training)` returns a dictionary of what weights
            become that are not trained. By default they stay.
        more: Tuple of further inputs, in a list behind the first.
        mask: Boolean array for the call that trains outside of the run; the
            functions above then get it as `mask`.
        keeps_mask: Whether the mask of a sequence goes on behind the layer.
        in_run: Whether the layer can be a function of a coupling.
        untrained: Names of trainable weights without a gradient.
        tolerance: Bound of errors, relative to the largest value.
        mixed: The same in mixed precision.
    """

    make: Callable
    x: np.ndarray
    oracle: Callable
    surrogate: Callable = None
    state: Callable = lambda w, x, training, mask=None: {}
    more: tuple = ()
    mask: np.ndarray = None
    keeps_mask: bool = True
    in_run: bool = True
    untrained: tuple = ()
    tolerance: float = 1e-4
    mixed: float = 0.05


class Part:
    """A copy of the layer in its place.

    Attributes:
        training: Whether it trains.
        run: Whether it stands in a run.
        mixed: Whether it computes in mixed precision.
        options: Dictionary of further arguments of the call.
        dtype: String, of its output, once it was called.
    """

    def __init__(self, layer, training=True, run=False, mixed=False):
        self.layer = layer
        self.outer = layer
        self.training = training
        self.run = run
        self.mixed = mixed
        self.options = {}


class Bench(keras.layers.Layer):
    """All parts side by side, each with an input of its own."""

    def __init__(self, row, parts):
        super().__init__(autocast=False, dtype="float32")
        self.row = row
        self.parts = parts
        self.outers = [part.outer for part in parts.values()]
        self.built = True

    def call(self, inputs, training=None):
        outputs = []
        for part, x in zip(self.parts.values(), inputs, strict=True):
            if part.run:
                x = [x / 2, x]
            if self.row.more:
                x = [x, *map(ops.convert_to_tensor, self.row.more)]
            options = keras.tree.map_structure(
                ops.convert_to_tensor, part.options
            )
            y = part.outer(x, training=part.training, **options)
            found = keras.tree.flatten(y)
            part.dtype = keras.backend.standardize_dtype(found[0].dtype)
            found = [ops.cast(y, "float32") for y in found]
            if not part.training or part.mixed:
                found = map(ops.stop_gradient, found)
            outputs += found
        return outputs


def name_of(variable, layer):
    name = variable.path.removeprefix(f"{layer.path}/")
    return re.sub(r"_\d+\b", "", name)


def named(layer, variables, values):
    """Dictionary by short names; the second of a name has a 2 behind it."""
    found = {}
    for variable, value in zip(variables, values, strict=True):
        name = name_of(variable, layer)
        while name in found:
            name += "2"
        found[name] = value
    return found


def symbol(array):
    return keras.KerasTensor(array.shape, str(array.dtype))


def built(row, policy="float32"):
    keras.config.set_dtype_policy(policy)
    layer = row.make()
    keras.config.set_dtype_policy("float32")
    x = [symbol(array) for array in (row.x, *row.more)]
    layer(x if row.more else x[0])
    return layer


def copied(layer, row):
    """The same from its settings, with the same weights."""
    other = type(layer).from_config(layer.get_config())
    x = [symbol(array) for array in (row.x, *row.more)]
    other(x if row.more else x[0])
    other.set_weights(layer.get_weights())
    return other


def saved(layer, row, path):
    """The same from a file."""
    inputs = [
        keras.Input(a.shape[1:], a.shape[0], dtype=str(a.dtype))
        for a in (row.x, *row.more)
    ]
    outputs = layer(inputs if row.more else inputs[0])
    keras.Model(inputs, outputs).save(path)
    return keras.saving.load_model(path).get_layer(layer.name)


def stir(layer):
    """Move all weights away from their initial values, upwards."""
    rng = np.random.default_rng(1)
    for variable in layer.variables:
        if "float" in variable.dtype:
            noise = 0.2 + 0.2 * np.abs(rng.normal(size=variable.shape))
            variable.assign(variable + noise.astype("float32"))
        elif "seed" not in variable.path:
            variable.assign(variable + 1)  # a counter


def parts_of(row, path):
    layer = built(row)
    stir(layer)
    train = Part(layer)
    if row.mask is not None:
        train.options["mask"] = row.mask
    copy = copied(layer, row)
    again = Part(copy, run=row.in_run)
    again.outer = Recompute(copy)
    if row.in_run:
        tanh = keras.layers.Activation("tanh")
        softplus = keras.layers.Activation("softplus")
        again.outer = ReversibleSequence(
            [AdditiveCoupling(again.outer, tanh), AdditiveCoupling(softplus)]
        )
    mixed = built(row, "mixed_bfloat16")
    mixed.set_weights(layer.get_weights())
    return {
        "training": train,
        "prediction": Part(saved(layer, row, path), training=False),
        "recomputation": again,
        "mixed precision": Part(mixed, mixed=True),
    }


def as_float64(array):
    array = np.asarray(ops.convert_to_numpy(array))
    return array if array.dtype.kind in "biu" else array.astype("float64")


def weights_of(layer):
    values = [as_float64(value) for value in layer.get_weights()]
    return named(layer, layer.weights, values)


class Oracle:
    """Values and gradients of a part, of the sum of squares and losses."""

    def __init__(self, row, part, w):
        self.row, self.part, self.w = row, part, w
        self.x = row.x.astype("float64")
        self.options = part.options

    def function(self, w, x):
        """Output and loss, whose derivative is the one that is asked for."""
        if self.row.surrogate is None:
            return self.value(w, x)
        fixed = self.w, self.x
        value, loss = self.value(*fixed)
        moved, more = pair(
            self.row.surrogate(
                w, x, self.part.training, fixed=fixed, **self.options
            )
        )
        base, less = pair(
            self.row.surrogate(
                *fixed, self.part.training, fixed=fixed, **self.options
            )
        )
        return value + moved - base, loss + more - less

    def value(self, w, x):
        return pair(self.row.oracle(w, x, self.part.training, **self.options))

    def outputs(self, w, x, function):
        y, loss = function(w, x)
        if not self.part.run:
            return [y], loss
        y1 = x / 2 + y
        y2 = x + np.tanh(y1)
        return [y2, y1 + np.log1p(np.exp(y2))], loss

    def total(self, w, x):
        outputs, loss = self.outputs(w, x, self.function)
        return sum(np.sum(y * y) for y in outputs) + loss

    def slope(self, direction, name=None):
        """Derivative along a direction of a weight, or of the input."""
        totals = []
        for step in (STEP, -STEP):
            moved = step * direction
            if name is None:
                totals.append(self.total(self.w, self.x + moved))
            else:
                w = {**self.w, name: self.w[name] + moved}
                totals.append(self.total(w, self.x))
        return (totals[0] - totals[1]) / (2 * STEP)


def pair(y):
    return y if isinstance(y, tuple) else (y, 0.0)


def check_row(row, path):
    """Run the program of a row; return what is wrong, as text."""
    parts = parts_of(row, path)
    weights = {name: weights_of(part.layer) for name, part in parts.items()}
    bench = Bench(row, parts)
    outputs, d_inputs, d_params = gradient_step(bench, GRAPH)(
        [row.x for _ in parts]
    )
    d_params = {
        id(v): d
        for v, d in zip(bench.trainable_variables, d_params, strict=True)
    }
    wrong = []
    for (name, part), d_x in zip(parts.items(), d_inputs, strict=True):
        oracle = Oracle(row, part, weights[name])
        expected, _ = oracle.outputs(oracle.w, oracle.x, oracle.value)
        found, outputs = outputs[: len(expected)], outputs[len(expected) :]
        tolerance = row.mixed if part.mixed else row.tolerance
        for a, b in zip(found, expected, strict=True):
            wrong += difference(f"output of {name}", a, b, tolerance)
        if part.dtype != ("bfloat16" if part.mixed else "float32"):
            wrong.append(f"{name} gives {part.dtype}")
        if part.training and not part.mixed:
            wrong += wrong_gradients(name, oracle, d_x, d_params)
        if not part.mixed:
            wrong += wrong_state(name, row, part, weights[name])
    return wrong


def difference(what, found, expected, tolerance):
    found, expected = as_float64(found), as_float64(expected)
    if found.shape != expected.shape:
        return [f"{what}: {found.shape} is not {expected.shape}"]
    size = np.max(np.abs(expected), initial=1e-2)
    error = np.max(np.abs(found - expected), initial=0.0) / size
    return [] if error <= tolerance else [f"{what}: error {error}"]


def wrong_gradients(name, oracle, d_x, d_params):
    layer = oracle.part.layer
    gradients = named(
        layer,
        layer.trainable_variables,
        [d_params[id(v)] for v in layer.trainable_variables],
    )
    rng = np.random.default_rng(2)
    wrong = []
    for weight, gradient in [(None, d_x), *gradients.items()]:
        gradient = as_float64(gradient)
        what = f"gradient of {weight or 'the input'} in {name}"
        size = np.linalg.norm(gradient)
        direction = rng.normal(size=gradient.shape)
        slope = oracle.slope(direction, weight)
        error = abs(slope - np.sum(gradient * direction))
        if not error <= 10 * oracle.row.tolerance * (size + 0.01):
            wrong.append(f"{what}: error {error}, slope {slope}")
        if weight and not size and weight not in oracle.row.untrained:
            wrong.append(f"{what} is zero")
    return wrong


def wrong_state(name, row, part, before):
    expected = row.state(before, row.x, part.training, **part.options)
    expected = {**before, **expected}
    after = weights_of(part.layer)
    variables = named(part.layer, part.layer.weights, part.layer.weights)
    return [
        problem
        for key, variable in variables.items()
        if not variable.trainable and "seed" not in key
        for problem in difference(
            f"state {key} of {name}", after[key], expected[key], row.tolerance
        )
    ]
