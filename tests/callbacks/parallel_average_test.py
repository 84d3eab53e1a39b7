"""SWAP: workers one after the other, their mean, and its statistics."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.callbacks import ParallelAverage
from keras_efficient.layers import ConvBN
from keras_efficient.utils import average_weights
from keras_efficient.utils import freeze_statistics
from keras_efficient.utils import recompute_batch_norm
from keras_efficient.utils import to_tune_mode
from tests.callbacks.killed import KillAt
from tests.callbacks.killed import Killed
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.marks import once
from tests.twins import batch


def network(rate=0.5):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Masking(),
            layers.BatchNormalization(),
            layers.Dropout(rate),
            layers.Dense(4, "tanh"),
            layers.GlobalAveragePooling1D(),
            layers.BatchNormalization(name="last"),
            layers.Dense(1),
        ]
    )


def data(count=22):
    x = batch(count, 5, 3) + 2
    x[::3, 3:] = 0.0  # padding
    return x, x[:, 0, :1]


def test_statistics_are_those_of_the_whole_dataset():
    """The last batch is smaller, and padding does not count."""
    model, (x, y) = network(), data()
    model.layers[1].trainable = True
    before = model.get_weights()
    seeds = [v for v in model.variables if "seed" in v.path]
    state = [np.array(ops.convert_to_numpy(v)) for v in seeds]
    assert seeds
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 22, 8)]
    assert recompute_batch_norm(model, batches) == 2
    rows = x[x.any(-1)].astype("float64")
    first = model.layers[1]
    for variable, expected in (
        (first.moving_mean, rows.mean(0)),
        (first.moving_variance, rows.var(0)),
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable), expected, rtol=1e-5
        )
    for variable, old in zip(seeds, state):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
    for variable, old in zip(model.weights, before):
        if variable.trainable:
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
    # Of arrays, and of some batches.
    found = ops.convert_to_numpy(first.moving_mean)
    recompute_batch_norm(model, x, batch_size=8)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(first.moving_mean), found
    )
    recompute_batch_norm(model, x, steps=1, batch_size=8)
    np.testing.assert_allclose(
        ops.convert_to_numpy(first.moving_mean),
        x[:8][x[:8].any(-1)].mean(0),
        rtol=1e-5,
    )
    first.trainable = False
    recompute_batch_norm(model, x + 1)
    np.testing.assert_allclose(
        ops.convert_to_numpy(first.moving_mean),
        x[:8][x[:8].any(-1)].mean(0),
        rtol=1e-5,
    )


def test_workers_and_their_mean_by_hand():
    """Each from the switch, with a fresh optimizer; seeds are not averaged."""
    x, y = data(16)
    model = network()
    model.compile(keras.optimizers.Adam(0.05), "mse", **fit_mode(LAST))
    weights = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            weights.append(model.get_weights())

        def on_epoch_end(self, epoch, logs=None):
            weights.append(model.get_weights())

    average = ParallelAverage(
        2,
        switch_epoch=1,
        worker_epochs=1,
        learning_rate=lambda epoch: 0.01 / (1 + epoch),
        recompute=x,
        evaluate=(x, y),
    )
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=9,
        verbose=0,
        shuffle=False,
        callbacks=[Watch(), average],
    ).history
    assert history["worker"] == [0, 1, 2] and average.workers_done == 2
    assert len(history["average_loss"]) == 1
    start, worker_1, again, worker_2 = weights[2:6]
    differ = []
    for variable, a, b, one, two, mean in zip(
        model.weights, start, again, worker_1, worker_2, model.get_weights()
    ):
        if "seed" not in variable.path:
            np.testing.assert_array_equal(a, b)
        if variable.trainable:
            differ.append(not np.array_equal(one, two))
            np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6)
            # Two steps of Adam, from moments that are zero.
            assert 0 < np.abs(one - a).max() < 0.0201
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2
    assert any(differ)  # they drop other units
    loss = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loss, history["average_loss"][0], rtol=1e-5)


@once
def test_average_of_models_and_of_files(tmp_path):
    one, two, into = network(), network(), network()
    rng = np.random.default_rng(0)
    for model in (one, two):
        model.set_weights(
            [
                w + rng.normal(size=w.shape).astype(w.dtype)
                for w in model.get_weights()
            ]
        )
    one.save_weights(tmp_path / "one.weights.h5")
    average_weights([tmp_path / "one.weights.h5", two], into=into)
    for variable, a, b, mean in zip(
        into.weights, one.get_weights(), two.get_weights(), into.get_weights()
    ):
        if "seed" not in variable.path:
            np.testing.assert_allclose(mean, (a + b) / 2, atol=1e-6)
    average_weights([two], into=into)
    for a, b in zip(into.get_weights()[:-1], two.get_weights()):
        if "float" in str(a.dtype):
            np.testing.assert_array_equal(a, b)
    other = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    before = into.get_weights()
    with pytest.raises(ValueError, match="must have weights of the same"):
        average_weights([one, other], into=into)
    for a, b in zip(into.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="must not be empty"):
        average_weights([], into=into)


@once
def test_switch_on_a_log_and_what_is_refused():
    x, y = data(16)
    model = network()
    model.compile("adam", "mse")
    average = ParallelAverage(
        1, switch="loss<1e9", worker_epochs=2, recompute=x
    )
    history = model.fit(x, y, epochs=9, verbose=0, callbacks=[average]).history
    assert history["worker"] == [0, 1, 1]
    for callback, match in (
        (ParallelAverage(2, switch_epoch=1, recompute=x), "at least 11"),
        (ParallelAverage(1, switch_epoch=1, worker_epochs=1), "`recompute`"),
        (
            ParallelAverage(1, "acc>1", worker_epochs=1, recompute=x),
            "on a log of an epoch. Received: 'acc'",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            model.fit(x, y, epochs=9, verbose=0, callbacks=[callback])
    for options, match in (
        ({}, "must say when"),
        ({"switch": "accuracy"}, "must be a condition"),
        ({"switch_epoch": 1, "workers": 0}, "`workers` must be"),
    ):
        with pytest.raises(ValueError, match=match):
            ParallelAverage(**options)
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="must have a trainable"):
        recompute_batch_norm(plain, x)
    with pytest.raises(ValueError, match="must yield batches"):
        recompute_batch_norm(model, [])


@once
def test_killed_run_goes_on_with_the_same_worker(tmp_path):
    """Bit for bit: killed in phase 1, and in the second worker."""
    x, y = data(20)

    def run(folder, *others):
        model = network(0.0)  # Keras' files hold no seeds
        model.compile(keras.optimizers.Adam(0.05), "mse")
        average = ParallelAverage(
            2,
            switch_epoch=2,
            worker_epochs=2,
            # So that workers differ.
            learning_rate=lambda epoch: (
                0.1 / (1 + epoch + average.workers_done)
            ),
            recompute=x,
        )
        backup = keras.callbacks.BackupAndRestore(folder)
        with contextlib.suppress(Killed):
            model.fit(
                *(x, y),
                batch_size=4,
                epochs=6,
                shuffle=False,
                verbose=0,
                callbacks=[average, backup, *others],
            )
        return average, model

    _, whole = run(tmp_path / "whole")
    run(tmp_path / "killed", KillAt(1))
    average, _ = run(tmp_path / "killed", KillAt(5))
    assert average.workers_done == 1
    average, resumed = run(tmp_path / "killed")
    assert average.workers_done == 2
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@once
def test_statistics_that_are_held_stay():
    """By hand, in tune mode, or in a layer that computes with them."""
    x, y = batch(8, 6, 6, 2), batch(8, 3)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            ConvBN(layers.Conv2D(3, 3), layers.BatchNormalization(), "eval"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    pair, other = model.layers[1], model.layers[2].batch_normalization
    before = [ops.convert_to_numpy(v) for v in pair.variables]
    for hold in (freeze_statistics, to_tune_mode):
        hold(model)
        with pytest.raises(ValueError, match="must yield batches|trainable"):
            recompute_batch_norm(model, x)
        for a, b in zip(pair.variables, before, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(a), b)
        hold(model, False)
    model.compile("sgd", "mse")
    freeze_statistics(model)
    gammas = [ops.convert_to_numpy(n.gamma) for n in (pair, other)]
    average = ParallelAverage(1, switch_epoch=1, worker_epochs=1)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[average])
    for norm, gamma in zip((pair, other), gammas, strict=True):
        assert np.all(ops.convert_to_numpy(norm.moving_mean) == 0)
        assert np.all(ops.convert_to_numpy(norm.gamma) != gamma)
    assert freeze_statistics(model, False) == 2
    model.fit(x, y, verbose=0)
    assert np.all(ops.convert_to_numpy(pair.moving_mean) != 0)
    with pytest.raises(TypeError, match="`model` must be"):
        freeze_statistics(layers.Dense(1))
    with pytest.raises(ValueError, match="must have a `BatchNormalization`"):
        freeze_statistics(keras.Sequential([layers.Dense(1)]))
