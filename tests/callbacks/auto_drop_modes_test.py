"""`AutoDrop` by windows: when it looks, what it keeps, how it goes on."""

import contextlib
import math

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import AutoDrop
from keras_efficient.callbacks import angular_velocity
from keras_efficient.callbacks.drop_rules import SaturationRule
from tests.callbacks.killed import KillAt
from tests.callbacks.killed import Killed

NAN = math.nan


# Of `trajectory`, found on JAX.
EPOCH_DROPS = [92]
WINDOW_DROPS = [23, 35, 47, 59, 72, 84, 98]
AUTO_DROPS = [31, 47, 60, 73, 86, 99]


def mean_output(y_true, y_pred):
    """A loss whose gradient is the same everywhere: all steps are alike."""
    return keras.ops.mean(y_pred)


def make_model(optimizer=None, loss=mean_output, **arguments):
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), dense])
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    model.compile(optimizer=optimizer, loss=loss, **arguments)
    return model


def fit(model, *callbacks, steps=4, **arguments):
    x, y = np.ones((steps, 2), "float32"), np.zeros((steps, 1), "float32")
    arguments = {"batch_size": 1, "verbose": 0, "epochs": 1, **arguments}
    return model.fit(x, y, callbacks=list(callbacks), **arguments).history


class Rates(keras.callbacks.Callback):
    """Keep the learning rate of every step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.values.append(float(keras.ops.convert_to_numpy(rate)))


def test_auto_drops_on_time():
    """One angle a window; the first needs three points."""
    rates = Rates()
    fewest = SaturationRule.fewest
    windows = fewest + 2
    # Straight steps: 0 degrees, below 90.
    model = make_model()
    callback = AutoDrop(window_steps=2)
    fit(model, callback, steps=4 * windows, epochs=1)
    assert callback.drops == [0]  # the one for the end of the run
    assert callback.drop_steps == [math.ceil(0.9 * 4 * windows)]
    # Steps to and fro: 180 degrees, and nothing rises.
    zigzag = make_model(loss="mse", optimizer=keras.optimizers.SGD(1.0))
    callback = AutoDrop(window_steps=1, factor=0.999)
    fit(zigzag, callback, rates, steps=10 * windows)
    assert callback.drop_steps[0] == windows
    np.testing.assert_allclose(
        rates.values[: windows + 1], [1.0] * windows + [0.999], rtol=1e-6
    )


def simulate(
    callback, epochs, steps, is_known=True, is_trained=True, optimizer=None
):
    """Call the hooks of `fit` without training; return the angles."""
    model = make_model(optimizer)
    (kernel,) = model.trainable_variables
    callback.set_model(model)
    params = {"epochs": epochs, "steps": steps if is_known else None}
    callback.set_params(params)
    callback.on_train_begin()
    angles = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        # Data of unknown size end with a batch that is not there.
        for batch in range(steps + (not is_known)):
            callback.on_train_batch_begin(batch)
            kernel.assign_add(0.1 * np.ones((2, 1)) * (batch < steps))
            model.optimizer.iterations.assign_add(int(is_trained))
        logs = {}
        callback.on_epoch_end(epoch, logs)
        angles.append(logs["angular_velocity"])
    callback.on_train_end()
    return angles


@pytest.mark.parametrize(
    "epochs, steps, windows", [(2, 500, 50), (60, 20, 60), (300, 2, 30)]
)
def test_windows_follow_the_steps_of_an_epoch(
    epochs, steps, windows, monkeypatch
):
    """At least 50 in a run, but of 20 steps at least."""
    seen = []
    monkeypatch.setattr(
        SaturationRule, "observe", lambda _, angle: bool(seen.append(angle))
    )
    callback = AutoDrop()
    simulate(callback, epochs, steps)
    # Two windows without an angle at first, one after the last drop.
    assert len(callback.drop_steps) == 1
    assert len(seen) == windows - 3


def test_data_of_unknown_size():
    """The first epoch tells how long an epoch is."""
    callback = AutoDrop(factor=0.5)
    angles = simulate(callback, 5, 250, is_known=False)
    np.testing.assert_allclose(angles, [NAN, 0, 0, 0, 0], atol=0.1)
    # Windows of 25 steps from the first epoch on; nine tenths of 1250.
    assert callback.drop_steps == [1125]


def test_window_mode_is_late_by_eleven_angles():
    callback = AutoDrop("window", window_steps=2, threshold=0.1)
    fit(make_model(), callback, steps=60)
    # Three windows for the first angle, ten more for two smoothed values.
    # After a drop the newest point stays: two windows for the next angle.
    assert callback.drop_steps == [2 * 13, 2 * 25]


def test_window_mode_takes_means():
    points = []

    class Spy(angular_velocity.AngularVelocity):
        def close(self):
            points.append(np.copy(self._sum[0]) / self.samples)
            return super().close()

    callback = AutoDrop("window", window_steps=8)
    callback.on_train_begin = lambda logs=None: setattr(
        callback, "_velocity", Spy()
    )
    fit(make_model(), callback, steps=17)
    # After 2, 4, 6 and 8 steps of -0.1 from 1, then eight steps on.
    np.testing.assert_allclose(points[0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(points[1], -0.3, rtol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "window"])
def test_at_most_three_copies(mode):
    copies = []

    class Spy(angular_velocity.AngularVelocity):
        def sample(self, variables):
            super().sample(variables)
            copies.append(len(self.points) + bool(self._sum))

    callback = AutoDrop(mode, window_steps=4)
    callback.on_train_begin = lambda logs=None: setattr(
        callback, "_velocity", Spy()
    )
    fit(make_model(), callback, steps=60)
    assert max(copies) == 3
    assert len(callback._velocity.points) == 2


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="Keras has none on torch."
)
def test_steps_per_execution():
    callback = AutoDrop("window", window_steps=4)
    model = make_model(steps_per_execution=4)
    fit(model, callback, steps=128, epochs=1)
    assert callback.drop_steps == [4 * 13, 4 * 25]


def test_gradient_accumulation():
    """A window in which nothing moves has no angle, and clears none."""
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    callback = AutoDrop("window", window_steps=1)
    history = fit(make_model(optimizer), callback, steps=120)
    assert history["angular_velocity"] == [pytest.approx(0.0, abs=0.01)]
    # Every fourth window moves, and the first one is the first point.
    assert callback.drop_steps == [4 * 12, 4 * 24]


def test_moving_average_and_loss_scale():
    optimizer = keras.optimizers.SGD(
        0.1, use_ema=True, ema_overwrite_frequency=1000
    )
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    callback = AutoDrop("window", window_steps=2)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model = make_model(optimizer)
    history = fit(model, callback, swap, steps=20, epochs=3)
    assert callback.drop_steps == [26, 50]
    assert history["drops"] == [0.0, 1.0, 2.0]
    expected = np.array([0.1, 0.095, 0.09025])
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-5)


def trajectory():
    """Gradient descent with noise to where it only scatters."""
    rng = np.random.default_rng(0)
    a, x = np.linspace(0.2, 2, 30), np.full(30, 20.0)
    points = []
    for _ in range(100):
        x = x - 0.2 * a * (x - rng.normal(size=30))
        points.append(x.astype("float32"))
    return points


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"mode": "epoch", "threshold": 1.0}, EPOCH_DROPS),
        ({"mode": "window", "window_steps": 1}, WINDOW_DROPS),
        ({"mode": "auto", "window_steps": 1}, AUTO_DROPS),
    ],
)
def test_same_decisions_on_every_backend(arguments, expected):
    """One epoch is one step here."""
    model = keras.Sequential(
        [keras.Input((30,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile("sgd", "mse")
    callback = AutoDrop(**arguments)
    callback.set_model(model)
    callback.set_params({"epochs": 1000, "steps": 1})
    callback.on_train_begin()
    for epoch, point in enumerate(trajectory()):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_begin(0)
        model.trainable_variables[0].assign(point[:, None])
        model.optimizer.iterations.assign_add(1)
        callback.on_epoch_end(epoch, {})
    assert callback.drop_steps == expected


def test_warm_up():
    rates = Rates()
    callback = AutoDrop("window", window_steps=2, warmup_steps=6)
    fit(make_model(), callback, rates, steps=4, epochs=10)
    ramp = 0.1 * np.arange(1, 7) / 6
    np.testing.assert_allclose(rates.values[:6], ramp, rtol=1e-5)
    np.testing.assert_allclose(rates.values[6:32], 0.1, rtol=1e-5)
    # Windows begin after the warm-up.
    assert callback.drop_steps == [6 + 26]


@pytest.mark.parametrize("mode", ["epoch", "auto"])
def test_warm_up_is_not_watched(mode):
    callback = AutoDrop(mode, warmup_steps=40, min_lr=0.1)
    history = fit(make_model(), callback, steps=20, epochs=6)
    # The warm-up ends with the second epoch, which is the first point in
    # mode "epoch"; in "auto" the third is.
    first = {"epoch": 3, "auto": 4}[mode]
    expected = [NAN] * first + [0.0] * (6 - first)
    np.testing.assert_allclose(history["angular_velocity"], expected, 0, 0.1)


def noisy_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("float32")
    return x, x @ rng.normal(size=(3, 1)).astype("float32") + rng.normal(
        size=(64, 1)
    ).astype("float32")


def noisy_model(rate=0.2):
    keras.utils.set_random_seed(0)
    # On every backend the same.
    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), dense])
    model.compile(keras.optimizers.SGD(rate, momentum=0.5), "mse")
    return model


MODES = {
    "epoch": {"threshold": 20.0, "max_threshold": 40.0, "factor": 0.8},
    "window": {"window_steps": 4, "threshold": 5.0},
    "auto": {"window_steps": 2, "factor": 0.8, "warmup_steps": 20},
}


@pytest.mark.parametrize("mode", MODES)
def test_killed_run_drops_where_the_whole_run_does(mode, tmp_path):
    def run(*others, folder):
        # Epochs that come to rest move by rounding, as each CPU does it.
        model = noisy_model(0.01 if mode == "epoch" else 0.2)
        callback = AutoDrop(mode, **MODES[mode])
        backup = keras.callbacks.BackupAndRestore(folder)
        with contextlib.suppress(Killed):
            model.fit(
                *noisy_data(),
                batch_size=4,
                epochs=12,
                shuffle=False,
                verbose=0,
                callbacks=[callback, backup, *others],
            )
        return callback, model

    whole, expected = run(folder=tmp_path / "whole")
    run(KillAt(epoch=1), folder=tmp_path / "killed")
    killed, _ = run(KillAt(epoch=6), folder=tmp_path / "killed")
    resumed, model = run(folder=tmp_path / "killed")
    # Drops on both sides of the break, and each where it was.
    assert 0 < len(killed.drop_steps) < len(whole.drop_steps)
    assert resumed.drop_steps == whole.drop_steps
    assert resumed.drops == whole.drops
    for value, other in zip(model.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(value, other)
    assert vars(resumed._rule) == vars(whole._rule)


def test_files_with_and_without_the_state(tmp_path):
    path = tmp_path / "plain.weights.h5"
    make_model().save_weights(path)
    model, callback = make_model(), AutoDrop("window", window_steps=2)
    callback.set_model(model)
    callback.on_train_begin()
    model.load_weights(path)  # as a backup from before there was a callback
    model.save_weights(path)
    make_model().load_weights(path)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"mean_output": mean_output}
    )
    assert len(loaded.weights) == len(model.weights)
    callback.on_train_end()
    assert model._auto_drop is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "2021"},
        {"mode": "auto", "threshold": 0.1},
        {"mode": "epoch", "window_steps": 10},
        {"mode": "window", "window_steps": 0},
        {"mode": "window", "threshold": 0.0},
        {"warmup_steps": -1},
    ],
)
def test_arguments_out_of_range(arguments):
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=rf"`{name}` must be .*={value}"):
        AutoDrop(**arguments)


def test_report_names_the_optimizer(capsys):
    callback = AutoDrop("window", window_steps=2, verbose=1)
    model = make_model(keras.optimizers.SGD(0.1, name="descent"))
    fit(model, callback, steps=30)
    out = capsys.readouterr().out
    assert "Epoch 1: AutoDrop reducing the learning rate of 'descent'" in out
    assert "to 0.095." in out
