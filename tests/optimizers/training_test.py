"""Each optimizer trains each problem: the table test."""

import pydoc_data.topics

import keras
import numpy as np
from keras import layers
from keras import ops
from sklearn.datasets import load_digits

from tests.optimizers.table import BACKEND
from tests.optimizers.table import ITEMSIZE
from tests.optimizers.table import TABLE
from tests.optimizers.table import each_algorithm
from tests.optimizers.table import each_optimizer
from tests.optimizers.table import each_with_a_third
from tests.optimizers.table import layout_of
from tests.optimizers.table import make
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import third_of_algorithms

# Functions of a matrix of 64 x 64: start, gradient and loss


def quadratic(x):
    difference = x - normal(64, 64, seed=1)
    return np.mean(difference**2), difference


def rosenbrock(x):
    """Of each two rows; the factor is 10 for 100, to get there in time."""
    a, b = x[::2], x[1::2]
    gradient = np.empty_like(x)
    gradient[::2] = -2 * (1 - a) - 40 * a * (b - a**2)
    gradient[1::2] = 20 * (b - a**2)
    return np.mean((1 - a) ** 2 + 10 * (b - a**2) ** 2), gradient


def matrix_regression(x):
    inputs = normal(256, 64, seed=2)
    error = inputs @ (x - normal(64, 64, seed=3))
    return np.mean(error**2), inputs.T @ error / 256


# What is not 0.1. SinkGD takes 0.05 of it.
RATES = {"SGD8bit": 0.02, "LDAdam": 0.2, "SinkGD": 2.0, "Muon8bit": 0.15}


@each_algorithm
def test_minimizes(name):
    """Three functions at once, each of a matrix of its own."""
    steps, start = 120, RATES.get(name, 0.1)
    functions = [quadratic, rosenbrock, matrix_regression]
    if name == "Muon8bit":  # moves as far across a valley as along it
        functions.remove(rosenbrock)
    values = [np.zeros((64, 64), "float32") for _ in functions]
    variables = [keras.Variable(value, name="kernel") for value in values]
    optimizer = make(name, start)
    step_fn = stepper(optimizer, variables)
    layout = layout_of(optimizer)
    first = [function(x)[0] for function, x in zip(functions, values)]
    for step in range(steps):
        optimizer.learning_rate = start * (1 - step / steps)
        pairs = zip(functions, values)
        gradients = [function(x.astype("float32"))[1] for function, x in pairs]
        values = step_fn([g.astype("float32") for g in gradients])
    for function, x, loss in zip(functions, values, first):
        assert function(x)[0] < 0.1 * loss, function.__name__
    assert layout_of(optimizer) == layout


# Networks


def embedding():
    """Words seen a few times each: gradients that are sparse."""
    x = np.arange(512).reshape(128, 4) % 256
    y = normal(256)[x].sum(axis=1, keepdims=True)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Embedding(256, 32),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(1),
        ]
    )
    return model, "mse", x, y


def digits():
    x, y = load_digits(return_X_y=True)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    return model, LOSS, x[:256], y[:256]


def text():
    """A small transformer on the documentation of Python."""
    characters = pydoc_data.topics.topics["lambda"] * 4
    codes = np.frombuffer(characters.encode("ascii", "replace"), "uint8")
    windows = np.lib.stride_tricks.sliding_window_view(codes, 17)[:256]
    inputs = keras.Input((16,), dtype="int32")
    x = layers.Embedding(128, 64)(inputs)
    places = ops.ones_like(inputs) * ops.arange(16)
    x = x + layers.Embedding(16, 64)(places)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 32)(y, y, use_causal_mask=True)
    y = layers.Dense(128, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.LayerNormalization()(x + layers.Dense(64)(y))
    model = keras.Model(inputs, layers.Dense(128)(x))
    return model, LOSS, windows[:, :-1].astype("int32"), windows[:, 1:]


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
JIT = BACKEND == "jax"
# Each network in another way on TensorFlow.
NETWORKS = {
    embedding: {"run_eagerly": True},
    digits: {"jit_compile": True},
    text: {"jit_compile": False},
}


@each_with_a_third("network", NETWORKS)
def test_trains(network, name, monkeypatch):
    calls = count_calls(TABLE[name].cls, monkeypatch)
    options = NETWORKS[network] if BACKEND == "tensorflow" else {}
    keras.utils.set_random_seed(0)
    model, loss, x, y = network()
    # Small tensors, too, have compressed state.
    optimizer = make(name, TABLE[name].rate, min_size=256)
    model.compile(optimizer, loss, **options)
    optimizer.build(model.trainable_variables)
    layout = layout_of(optimizer)
    dtypes = [v.dtype for v in model.variables]
    first = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=1, batch_size=32, verbose=0)
    traced = len(calls)
    model.fit(x, y, epochs=7, batch_size=32, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.65 * first
    if BACKEND != "torch" and "run_eagerly" not in options:
        assert len(calls) == traced
    assert layout_of(optimizer) == layout
    assert {v.dtype for v in state_of(optimizer)} <= set(ITEMSIZE)
    assert [v.dtype for v in model.variables] == dtypes


def count_calls(cls, monkeypatch):
    calls, update_step = [], cls.update_step

    def counted(self, *args):
        calls.append(args)
        return update_step(self, *args)

    monkeypatch.setattr(cls, "update_step", counted)
    return calls


@third_of_algorithms(2)
def test_trains_in_bfloat16(name, own_compile):
    """Variables in float32 and in bfloat16, each with compressed state.

    State is made in the first step, as wherever nobody builds the optimizer.
    """
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(128, "relu", dtype="mixed_bfloat16"),
            layers.Dense(32, "relu", dtype="bfloat16"),
            layers.Dense(1, dtype="bfloat16"),
        ]
    )
    model.compile(make(name, TABLE[name].rate), "mse", jit_compile=JIT)
    x = normal(256, 32)
    y = 2 * x[:, :1] + np.sin(x[:, 1:2])
    losses = model.fit(x, y, epochs=10, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    dtypes = [v.dtype for v in model.trainable_variables]
    assert dtypes == ["float32"] * 2 + ["bfloat16"] * 4


@each_optimizer
def test_bytes_of_state(name):
    optimizer = make(name)
    optimizer.build([keras.Variable(ops.zeros((1000, 300)), name="kernel")])
    total = sum(
        np.prod(v.shape) * ITEMSIZE[v.dtype] for v in state_of(optimizer)
    )
    assert total <= TABLE[name].bytes * 300_000
