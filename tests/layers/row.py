"""A row of the table of sub-layers, and training steps of it.

Whatever a row shows is in variables of its `Case`: two steps of gradient
descent move parameters (and a factor on the input, so its gradient, too), state
moves as the layer moves it, `total` is a checksum of outputs and their masks.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence

BACKEND = keras.config.backend()
RATE = 0.1
BATCH = 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _call(f, x, training):
    return f(x, training=training)


class Row(NamedTuple):
    """A layer that is wrapped, and how it is called.

    Attributes:
        make: Function that returns the layer, or a tuple of the layer and of
            what else it reads or writes: layers, metrics, variables of Keras or
            parameters of the backend's own.
        x: Array, the input.
        before: Function that returns a layer to which the input goes first;
            it gets what else `make` returned.
        call: `call(f, x, training)` calls the layer or its wrapper, `f`.
        in_run: The same for a run of couplings around the layer, `x` being
            the list of streams. `None` leaves the run out.
        refused: Dictionary from `"recompute"`, `"coupling"`, `"scan"` to what
            the error says that the first call raises.
        tolerance: Bound of errors, relative to how much something moves.
        only: The backends that have such a layer.
        fit: Whether Keras can train it by `fit`.
        symbolic: Whether it can be built without values.
        untrained: The backends (`"torch"`) or modes of a backend (`"torch
            coupling"`) where Keras itself cannot train the plain layer.
    """

    make: Callable
    x: np.ndarray = normal(BATCH, 4)
    before: Callable = None
    call: Callable = _call
    in_run: Callable = _call
    refused: dict = {}
    tolerance: float = 1e-4
    only: tuple = ("jax", "tensorflow", "torch")
    fit: bool = True
    symbolic: bool = True
    untrained: tuple = ()

    def trains(self, mode):
        return not {BACKEND, f"{BACKEND} {mode}"} & set(self.untrained)


class Case(layers.Layer):
    """A row with or without its wrapper; returns `(total, outputs)`.

    Args:
        row: A `Row`.
        mode: `"recompute"`, `"coupling"` or `"scan"`.
        wrapped: Boolean. Whether there is a wrapper that recomputes, or none.
    """

    def __init__(self, row, mode, wrapped):
        super().__init__()
        self.row = row
        self.mode = mode
        self.layers = []
        self.others = []
        self.native = []
        for _ in range(2 if mode == "scan" else 1):
            self._take(row.make())
        self.before = row.before and row.before(*self.others)
        self.wrapper = _wrapper(self.layers, mode, wrapped)
        self.streams = mode != "recompute"
        self.seen = []  # what is not a tensor among the outputs
        self.total = self.add_weight(shape=(), trainable=False, name="total")
        self.bias = self.add_weight(shape=(), name="bias")
        if row.x.dtype == "float32":
            self.factor = self.add_weight(
                shape=row.x.shape, initializer="ones", name="factor"
            )

    def _take(self, made):
        layer, *others = made if isinstance(made, tuple) else (made,)
        self.layers.append(layer)
        for other in others:
            keras_has = isinstance(
                other, (layers.Layer, keras.Metric, keras.Variable)
            )
            (self.others if keras_has else self.native).append(other)
        for other in self.others:
            if isinstance(other, keras.Variable):
                self._track_variable(other)

    def run(self, x, training=None):
        """Call the wrapper, or the layer where there is none."""
        half = x / 2 if self.row.x.dtype == "float32" else x
        if self.before:
            x, half = self.before(x), self.before(half)
        if self.streams:
            return self.row.in_run(self.wrapper, [x, half], training)
        return self.row.call(self.wrapper, x, training)

    def call(self, x, training=None):
        if self.row.x.dtype == "float32":
            x = x * self.factor
        outputs = keras.tree.flatten(self.run(x, training))
        self.seen = [y for y in outputs if not ops.is_tensor(y)]
        outputs = [y for y in outputs if ops.is_tensor(y)]
        masks = [getattr(y, "_keras_mask", None) for y in outputs]
        self.seen += [m is not None for m in masks]
        outputs += [m for m in masks if m is not None]
        total = sum(_checksum(y) for y in outputs)
        self.total.assign(ops.stop_gradient(total))
        return total + self.bias, outputs


def _checksum(y):
    y = ops.cast(y, "float32")
    weights = np.sin(1 + np.arange(np.prod(y.shape))).reshape(y.shape)
    return ops.sum(y * ops.convert_to_tensor(weights, "float32"))


def _wrapper(layers, mode, wrapped):
    if mode == "recompute":
        return Recompute(layers[0]) if wrapped else layers[0]
    blocks = [AdditiveCoupling(f) for f in (layers * 2)[:2]]
    return ReversibleSequence(
        blocks, reversible=wrapped, scan=wrapped and mode == "scan"
    )


def build(row, mode, wrapped):
    keras.utils.set_random_seed(7)
    case = Case(row, mode, wrapped)
    if BACKEND == "jax" and row.symbolic:  # quicker than each operation alone
        case.run(keras.Input(batch_shape=row.x.shape, dtype=row.x.dtype))
        case.built = True
    else:
        case(ops.convert_to_tensor(row.x))
    return case


def to_numpy(x):
    x = np.array(ops.convert_to_numpy(x))  # a copy
    return x if x.dtype.kind in "biu" else x.astype("float64")


def state_of(case):
    """Place, name and value of all variables."""
    variables = [*case.variables, *case.metrics_variables]
    variables = {id(v): v for v in variables}.values()
    return {
        f"{i} {v.name.rstrip('_0123456789')}": to_numpy(v)
        for i, v in enumerate(variables)
    }


def two_steps(case):
    """Train two steps without a compiler, then predict.

    Returns:
        Dictionary of everything that came of it, as arrays.
    """
    x = ops.convert_to_tensor(case.row.x)
    keras.utils.set_random_seed(1)
    before = state_of(case)
    found = {}
    for i in range(2 if case.row.trains(case.mode) else 0):
        outputs, native = globals()[f"_step_{BACKEND}"](case, x)
        for kind, values in (("output", outputs), ("native", native)):
            for j, value in enumerate(values):
                found[f"{kind} {j} of step {i}"] = value
        found[f"other outputs of step {i}"] = case.seen
    found["moved"] = moves(before, state_of(case))
    for i in range(2):
        for j, value in enumerate(_predict(case, x)):
            found[f"output {j} of prediction {i}"] = value
    found["moved later"] = moves(before, state_of(case))
    return found


def moves(before, after):
    """How much floats moved, and what integers are by now."""
    return {
        name: value - before[name] if value.dtype.kind == "f" else value
        for name, value in after.items()
    }


def _predict(case, x):
    if BACKEND == "torch":
        import torch

        with torch.no_grad():
            _, outputs = case(x, training=False)
    else:
        _, outputs = case(x, training=False)
    return [to_numpy(y) for y in outputs]


def _loss(case, x):
    total, outputs = case(x, training=True)
    return total + sum(case.losses, 0.0), outputs


def _descend(variables, gradients):
    for v, g in zip(variables, gradients, strict=True):
        if g is not None:
            v.assign(v - RATE * ops.cast(g, v.dtype))


def _numbers(gradients, like):
    """No gradient is one of zeros."""
    pairs = zip(gradients, like, strict=True)
    return [np.zeros(p.shape) if g is None else to_numpy(g) for g, p in pairs]


def _step_torch(case, x):
    import torch

    variables = case.trainable_variables
    loss, outputs = _loss(case, x)
    found = torch.autograd.grad(
        loss, [*[v.value for v in variables], *case.native], allow_unused=True
    )
    _descend(variables, found[: len(variables)])
    native = _numbers(found[len(variables) :], case.native)
    return [to_numpy(y) for y in outputs], native


def _step_tensorflow(case, x):
    import tensorflow as tf

    variables = case.trainable_variables
    with tf.GradientTape() as tape:
        loss, outputs = _loss(case, x)
    found = tape.gradient(loss, [*[v.value for v in variables], *case.native])
    found = [g if g is None else tf.convert_to_tensor(g) for g in found]
    _descend(variables, found[: len(variables)])
    native = _numbers(found[len(variables) :], case.native)
    return [to_numpy(y) for y in outputs], native


def _step_jax(case, x):
    import jax

    variables = case.trainable_variables
    others = [*case.non_trainable_variables, *case.metrics_variables]

    def loss_fn(values, state):
        pairs = [*zip(variables, values), *zip(others, state)]
        with keras.StatelessScope(pairs, collect_losses=True) as scope:
            total, outputs = case(x, training=True)
            loss = total + sum(scope.losses, 0.0)
        written = [scope.get_current_value(v) for v in variables]
        state = [scope.get_current_value(v) for v in others]
        return loss, (outputs, written, state)

    found, (outputs, written, state) = jax.grad(loss_fn, has_aux=True)(
        [v.value for v in variables], [v.value for v in others]
    )
    for v, value in zip(others, state, strict=True):
        v.assign(value)
    _descend(variables, found)  # as in `fit`, which drops what was written
    return [to_numpy(y) for y in outputs], [to_numpy(w) for w in written]


class Group(keras.Model):
    """Rows side by side: one program to compile for all of them."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.built = True

    def call(self, inputs, training=None):
        totals = [
            case(inputs[str(i)], training=training)[0]
            for i, case in enumerate(self.cases)
        ]
        return ops.stack(totals)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.sum(y_pred) + sum(self.losses, 0.0)


def fitted(cases, jit_compile):
    """Train cases two steps by `fit`; how each of them moved."""
    model = Group(cases)
    keras.utils.set_random_seed(1)
    before = [state_of(case) for case in cases]
    model.compile(keras.optimizers.SGD(RATE), jit_compile=jit_compile)
    x = {str(i): case.row.x for i, case in enumerate(cases)}
    model.fit(x, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    return [moves(old, state_of(case)) for old, case in zip(before, cases)]
