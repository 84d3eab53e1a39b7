"""SHADE against NumPy and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient.layers import ShannonDecay
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.marks import once

Y = np.random.default_rng(0).normal(size=(6, 3, 4)).astype("float32")


def by_numpy(y, state, momentum=0.8):
    """Return `(loss, new state)` of rows of neurons, `factor` being 1."""
    probability, mean = state
    p1 = 1 / (1 + np.exp(-y))
    p = np.stack([1 - p1, p1])
    probability = momentum * probability + (1 - momentum) * p.mean(1)
    mean = momentum * mean + (1 - momentum) * (p * y).mean(1) / probability
    loss = (p * (y - mean[:, None]) ** 2).mean(1).sum()
    return loss, (probability, mean)


def start(features=4):
    return np.full((2, features), 0.5), np.zeros((2, features))


def test_losses_and_state_are_those_of_numpy():
    layer, state = ShannonDecay(2.0), start()
    for step in range(3):
        y = Y * (step + 1)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(layer(y, training=True)), y
        )
        loss, state = by_numpy(y.reshape(-1, 4).astype("float64"), state)
        np.testing.assert_allclose(
            ops.convert_to_numpy(layer.losses[0]), 2 * loss, rtol=1e-4
        )
    np.testing.assert_allclose(layer.get_weights()[0], state[0], rtol=1e-5)
    np.testing.assert_allclose(
        layer.get_weights()[1], state[1], rtol=1e-4, atol=1e-6
    )
    layer(Y, training=False)
    assert not layer.losses


def test_the_gradient_is_that_of_differences():
    layer = ShannonDecay(1.0)
    layer.build(Y.shape)

    def loss(y):
        scope = keras.StatelessScope(collect_losses=True)
        with scope:
            layer(y, training=True)
        return scope.losses[0]

    value, pullback = backend.vjp(loss, ops.convert_to_tensor(Y))
    (gradient,) = pullback(ops.ones_like(value))
    rows = Y.reshape(-1, 4).astype("float64")
    mean = by_numpy(rows, start())[1][1]

    def with_mean_held(rows):
        p1 = 1 / (1 + np.exp(-rows))
        p = np.stack([1 - p1, p1])
        return (p * (rows - mean[:, None]) ** 2).mean(1).sum()

    expected = np.zeros_like(rows)
    for index in np.ndindex(rows.shape):
        for side in (1e-5, -1e-5):
            moved = rows.copy()
            moved[index] += side
            expected[index] += with_mean_held(moved) / (2 * side)
    gradient = ops.convert_to_numpy(gradient).reshape(rows.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@once
def test_two_states_cost_less_than_one_of_equal_variance():
    two = np.repeat([[3.0], [-3.0]], 32, axis=0)
    one = 3 * np.random.default_rng(0).normal(size=(64, 1))
    one = (one - one.mean()) / one.std() * two.std()
    costs = []
    for y in (two, one):
        state = start(1)
        for _ in range(30):
            cost, state = by_numpy(y, state)
        layer = ShannonDecay(1.0)
        for _ in range(30):
            layer(y, training=True)
        costs.append(float(layer.losses[0]))
        assert np.isclose(costs[-1], cost, rtol=1e-3)
    assert costs[0] < 0.5 * costs[1]


@once
def test_what_is_masked_does_not_count():
    mask = np.ones((6, 3), bool)
    mask[:, 2] = False
    whole, part = ShannonDecay(1.0), ShannonDecay(1.0)
    whole(Y, training=True, mask=mask)
    part(Y[:, :2], training=True)
    np.testing.assert_allclose(
        float(whole.losses[0]), float(part.losses[0]), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_it_trains_and_is_saved(dtype, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            keras.layers.Dense(4, dtype=dtype),
            ShannonDecay(0.1, dtype=dtype),
            keras.layers.Dense(1, "tanh", dtype=dtype),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", **fit_mode(LAST))
    losses = model.fit(Y, Y[..., :1], epochs=9, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert (model.layers[1].get_weights()[1] != 0).all()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@once
@pytest.mark.parametrize(
    "settings", [{"factor": -1}, {"momentum": 1.0}, {"factor": np.inf}]
)
def test_bad_arguments_are_told(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ShannonDecay(**settings)
