"""A row of the table of sub-layers, as a layer with or without a wrapper."""

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
# `Recompute`; `AdditiveCoupling` in a run; the same where that is a loop.
MODES = ("recompute", "coupling", "scan")
# What a run says of layers that return another shape than they get.
RESIZES = dict.fromkeys(MODES[1:], "must return one tensor of shape")
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
        refused: Dictionary from a mode, or a mode of a backend (`"torch
            scan"`), to what the error says that the first call raises.
        tolerance: Bound of errors, relative to how much something moves.
        only: The backends that have such a layer.
        symbolic: Whether it can be built without values.
        untrained: Where Keras itself cannot train the plain layer: backends
            (`"torch"`), what is done (`"fit"`), or both (`"jax fit"`).
    """

    make: Callable
    x: np.ndarray = normal(BATCH, 4)
    before: Callable = None
    call: Callable = _call
    in_run: Callable = _call
    refused: dict = {}
    tolerance: float = 1e-4
    only: tuple = ("jax", "tensorflow", "torch")
    symbolic: bool = True
    untrained: tuple = ()

    def refusal(self, mode):
        """What the error says that is raised here, or `None`."""
        return self.refused.get(f"{BACKEND} {mode}", self.refused.get(mode))

    def trains(self, *how):
        places = {BACKEND, *how, *(f"{BACKEND} {part}" for part in how)}
        return places.isdisjoint(self.untrained)


class Case(layers.Layer):
    """A row with or without its wrapper; returns `(total, outputs)`.

    Args:
        row: A `Row`.
        mode: One of `MODES`.
        wrapped: Boolean. Whether there is a wrapper that recomputes, or none.
    """

    def __init__(self, row, mode, wrapped):
        super().__init__()
        self.row = row
        self.mode = mode
        self.layers = []
        self.others = []
        self.native = []
        self._take(row.make())
        self.before = row.before and row.before(*self.others)
        if mode == "scan":
            self._take(row.make())
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
    case.total.assign(0.0)
    for metric in case.metrics:
        metric.reset_state()  # as `fit` does
    return case
