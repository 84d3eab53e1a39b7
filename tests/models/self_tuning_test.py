"""Self-tuning: ridge regression, whose optimum is known."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient.layers import SelfTuningDense
from keras_efficient.layers import SelfTuningDropout
from keras_efficient.models import SelfTuning
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.marks import once

BACKEND = keras.config.backend()
RNG = np.random.default_rng(5)
N, D = 40, 15
W = RNG.normal(size=(D, 1))


def data(rng):
    x = rng.normal(size=(N, D))
    y = x @ W + 3 * rng.normal(size=(N, 1))
    return x.astype("float32"), y.astype("float32")


TRAIN, TUNING = data(RNG), data(RNG)


def ridge(log_decay):
    """The weights that are best on the training data, with their penalty."""
    x, y = TRAIN
    gram = x.T @ x / N + np.exp(log_decay) * np.eye(D)
    return np.linalg.solve(gram, x.T @ y / N)


def tuning_loss(log_decay):
    x, y = TUNING
    return float(((x @ ridge(log_decay) - y) ** 2).mean())


def network(start, **settings):
    x, h = keras.Input((D,)), keras.Input((1,))
    dense = SelfTuningDense(1, use_bias=False, decay=0, name="dense")
    model = keras.Model([x, h], dense([x, h]))
    settings = {"tune_scale": False, "warmup_steps": 200, **settings}
    return SelfTuning(model, {"log_decay": start}, seed=2, **settings), dense


def test_it_finds_the_best_ridge():
    """From below on PyTorch, from above on the others."""
    grid = np.linspace(-6, 4, 501)
    best = grid[np.argmin([tuning_loss(g) for g in grid])]
    assert -4 < best < 3
    model, dense = network(-5.0 if BACKEND == "torch" else 3.0)
    rates = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.03))
    rates[".*hyperparameters.*"] = keras.optimizers.Adam(0.01)
    optimizer = keras.optimizers.MultiOptimizer(rates)
    model.compile(optimizer, "mse", **fit_mode(LAST))
    repeated = [np.tile(a, (1200, 1)) for a in TRAIN]  # all in each batch
    model.fit(
        *repeated,
        tuning_data=TUNING,
        batch_size=N,
        shuffle=False,
        verbose=0,
    )
    found = model.hyperparameter_values()["log_decay"]
    assert abs(found - best) < 0.5
    assert tuning_loss(found) < 1.02 * tuning_loss(best)
    kernel, answer, scale, gate = dense.get_weights()
    w = scale * kernel + found * gate * answer
    assert np.linalg.norm(w - ridge(found)) < 0.1 * np.linalg.norm(w)


def test_hyperparameters_have_the_gradient_of_the_tuning_loss_alone():
    model, _ = network(-1.0, warmup_steps=1)
    model.compile("sgd", "mse")
    x = {"train": TRAIN[0], "tuning": TUNING[0]}
    y = {"train": TRAIN[1], "tuning": TUNING[1]}
    model(x)
    variables = model.trainable_variables

    def loss(values, which):
        pairs = [(v, value) for v, value in zip(variables, values)]
        with keras.StatelessScope(pairs):
            outputs = model(x, training=True)
            goal = ops.convert_to_tensor(y[which])
            return ops.mean(ops.square(outputs[which] - goal))

    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    for which, steps in (("train", 1), ("tuning", 0), ("tuning", 1)):
        model.steps.assign(steps)  # the first is one of warm-up
        value, pullback = backend.vjp(
            lambda values: loss(values, which), [v.value for v in variables]
        )
        (gradients,) = pullback(ops.ones_like(value))
        for variable, gradient in zip(variables, gradients):
            is_hyper = "hyperparameters" in variable.path
            size = np.abs(ops.convert_to_numpy(gradient)).max()
            learns = which == "tuning" and steps > 0
            assert (size > 0) == (learns if is_hyper else which == "train")


def test_the_layer_is_a_dense_one_for_each_row():
    layer = SelfTuningDense(3, "tanh", decay=1)
    x = RNG.normal(size=(4, 5, 2)).astype("float32")
    h = RNG.normal(size=(4, 2)).astype("float32")
    layer.build([x.shape, h.shape])
    layer.set_weights([RNG.normal(size=w.shape) for w in layer.get_weights()])
    names = [v.name for v in layer.weights]
    w = dict(zip(names, (a.astype("float64") for a in layer.get_weights())))
    found = ops.convert_to_numpy(layer([x, h], training=True))
    penalty = 0.0
    for i in range(4):
        kernel = w["scale"] * w["kernel"]
        kernel = kernel + (h[i] @ w["kernel_gate"]) * w["response_kernel"]
        bias = w["scale"] * w["bias"]
        bias = bias + (h[i] @ w["bias_gate"]) * w["response_bias"]
        expected = np.tanh(x[i] @ kernel + bias)
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
        penalty += np.exp(h[i, 1]) * (kernel**2).sum() / 4
    np.testing.assert_allclose(float(layer.losses[0]), penalty, rtol=1e-5)
    again = SelfTuningDense.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    layer([x, h])
    assert not layer.losses


def test_saving_and_sixteen_bits(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, _ = network(0.0, tune_scale=True)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam", "mse", metrics=["mae"])
    logs = model.fit(
        *TRAIN, tuning_data=[a[:13] for a in TUNING], epochs=2, verbose=0
    ).history
    assert np.isfinite(logs["loss"]).all() and "mae" in logs
    assert len(model.evaluate(*TUNING, verbose=0)) == 2
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.hyperparameter_values() == model.hyperparameter_values()
    np.testing.assert_allclose(
        again.predict(TUNING[0], verbose=0),
        model.predict(TUNING[0], verbose=0),
        atol=1e-2,
    )


@once
def test_bad_arguments_are_told():
    for settings in ({"scale": 0}, {"entropy": -1}, {"warmup_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            network(0.0, **settings)
    with pytest.raises(ValueError, match="hyperparameters"):
        SelfTuning(keras.layers.Dense(1), {})
    with pytest.raises(ValueError, match="units"):
        SelfTuningDense(0)
    with pytest.raises(ValueError, match="decay"):
        SelfTuningDense(1, decay=2).build([(None, 3), (None, 2)])


@once
def test_each_example_is_dropped_at_its_own_rate():
    layer = SelfTuningDropout(1, max_rate=0.8, seed=3)
    x = np.ones((3, 40, 50), "float32")
    h = np.array([[9, -1], [0, 0], [-9, 2]], "float32")
    y = ops.convert_to_numpy(layer([x, h], training=True))
    rates = 0.8 / (1 + np.exp(-h[:, 1]))
    np.testing.assert_allclose((y == 0).mean((1, 2)), rates, atol=0.03)
    np.testing.assert_allclose(y.max((1, 2)), 1 / (1 - rates), rtol=1e-5)
    again = ops.convert_to_numpy(layer([x, h], training=True))
    assert (again != y).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(layer([x, h])), x)
    with pytest.raises(ValueError, match="`index` must be that of"):
        SelfTuningDropout(2)([x, h])
