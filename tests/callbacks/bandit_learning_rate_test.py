import contextlib
import math

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import BanditLearningRate
from tests.callbacks.killed import KillAt
from tests.callbacks.killed import Killed

RATES = [0.001, 0.1]


def make_model(optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(0.5, momentum=0.5)
    model.compile(optimizer, "mse")
    return model


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 3)).astype("float32")
    return x, x @ np.array([[1.0], [-2.0], [3.0]], "float32")


def fit(model, *callbacks, epochs=6, batch_size=8, repeats=1):
    x, y = (np.tile(part, (repeats, 1)) for part in make_data())
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    ).history


def all_of(model):
    return [*model.variables, *model.optimizer.variables]


class Losses(keras.callbacks.Callback):
    """Keep the loss and the learning rate of every step."""

    def __init__(self):
        super().__init__()
        self.losses, self.rates = [], []

    def on_train_batch_begin(self, batch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))

    def on_train_batch_end(self, batch, logs=None):
        before = sum(self.losses[len(self.losses) - batch :]) if batch else 0
        self.losses.append(float(logs["loss"]) * (batch + 1) - before)


def test_learns_which_arm_is_better():
    """On a smooth problem far from the end the larger rate gains more."""
    bandit = BanditLearningRate([1e-5, 1e-4, 0.02], steps_per_pull=4)
    history = fit(make_model(), bandit, batch_size=96, repeats=10, epochs=8)
    assert history["share_0.02"][-1] > 0.6
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    shares = [history[f"share_{r:g}"][-1] for r in bandit.learning_rates]
    assert sum(shares) == pytest.approx(1.0)


def test_arm_is_held_and_losses_are_differences():
    """Pulls cross the ends of epochs; rewards follow from steps' losses."""
    bandit = BanditLearningRate([0.001, 0.002], 5, max_growth=10)
    losses = Losses()
    rewards = []
    earn = bandit._earn
    bandit._earn = lambda reward: (rewards.append(reward), earn(reward))
    model = make_model()
    # Each of the first pulls lowers the loss; else it would be taken back.
    model.set_weights([np.array([[-2.0], [2.0], [-1.0]]), np.zeros(1)])
    fit(model, bandit, losses, epochs=5)
    rates = np.reshape(losses.rates, (-1, 5))
    assert (rates == rates[:, :1]).all()
    assert {0.001, 0.002} == set(np.round(rates[:, 0], 6))
    means = np.reshape(losses.losses, (-1, 5)).mean(axis=1)
    expected = (means[:-1] - means[1:]) / (means[:-1] + means[1:])
    assert rewards[0] == 0.0
    np.testing.assert_allclose(rewards[1:], expected, rtol=1e-3, atol=1e-6)


def test_discounted_bound():
    """The choice after a few pulls, written out."""
    bandit = BanditLearningRate(RATES, discount=0.5)
    bandit._memory["changes"] = [2.0, 4.0]
    for reward in (0.5, 0.25, 0.125):
        bandit._earn(reward)
    # Arms 0, 1, then the one with the larger bound.
    pulls = np.array([0.5, 1.0])
    rewards = np.array([0.25, 0.25])
    scale = math.sqrt(4.0 / 2.0 / 2)
    bound = rewards / pulls + scale * np.sqrt(np.log(1.5) / pulls)
    third = int(np.argmax(bound))
    pulls = 0.5 * pulls
    rewards = 0.5 * rewards
    pulls[third] += 1
    rewards[third] += 0.125
    np.testing.assert_allclose(bandit._memory["pulls"], pulls)
    np.testing.assert_allclose(bandit._memory["rewards"], rewards)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_divergence_is_taken_back(rate):
    """The loss explodes, or is not finite; training goes on all the same."""
    bandit = BanditLearningRate([0.01, 0.02, rate], steps_per_pull=3)
    model = make_model()
    # A pull sees all the data.
    history = fit(model, bandit, batch_size=32, repeats=5, epochs=8)
    assert 1 <= history["taken_back"][-1] <= 3
    # What was taken back is not in the means of its epoch.
    assert max(history["loss"]) < 100
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert history[f"reward_{rate:g}"][-1] < -0.9


def test_one_lucky_pull_does_not_stop_training():
    bandit = BanditLearningRate([0.01, 0.02], steps_per_pull=1)
    bandit._memory.update(loss_before=1.0, pulls=[1.0, 1.0])
    model = make_model()
    bandit.set_model(model)
    bandit.on_train_batch_begin(0)
    taken_back = []
    for _ in range(6):
        bandit._memory.update(loss_sum=1.4, steps=1)
        bandit._end_pull(model)
        taken_back.append(bandit._memory["taken_back"])
    # 1.1, 1.21, 1.331 and 1.4641
    assert taken_back == [1, 2, 3, 3, 3, 3]


def test_any_growth_is_taken_back_in_the_first_round():
    bandit = BanditLearningRate([0.01, 0.1, 1.0], steps_per_pull=1)
    model = make_model()
    bandit.set_model(model)
    bandit.on_train_batch_begin(0)
    taken_back = []
    for loss in (2.3, 2.2, 2.21, 2.21):
        bandit._memory.update(loss_sum=loss, steps=1)
        bandit._end_pull(model)
        taken_back.append(bandit._memory["taken_back"])
    assert taken_back == [0, 0, 1, 1]


def test_take_back_restores_weights_and_optimizer():
    bandit = BanditLearningRate([0.01, 1e30], steps_per_pull=4)
    model = make_model(keras.optimizers.Adam(0.1))
    bandit.set_model(model)
    bandit.on_train_begin()
    fit(model)
    variables = all_of(model)
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    bandit.on_train_batch_begin(0)
    assert before[-1].any()
    fit(model)
    bandit._take_back(model)
    for variable, value in zip(variables, before):
        after = keras.ops.convert_to_numpy(variable)
        np.testing.assert_array_equal(after, value, err_msg=variable.path)


def test_two_in_a_row_go_further_back():
    bandit = BanditLearningRate(RATES)
    model = make_model()
    bandit.set_model(model)
    (kernel, _) = model.trainable_variables
    for value in (1.0, 2.0):
        kernel.assign(np.full((3, 1), value))
        bandit._snapshots.append(
            [np.array(keras.ops.convert_to_numpy(v)) for v in all_of(model)]
        )
    for expected in (2.0, 1.0, 1.0):
        kernel.assign(np.full((3, 1), np.nan))
        bandit._take_back(model)
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(kernel), np.full((3, 1), expected)
        )


def test_optimizers_state_is_kept_across_swaps():
    optimizer = keras.optimizers.SGD(0.5, momentum=0.5)
    bandit = BanditLearningRate(RATES, 3, max_growth=1e9)
    history = fit(make_model(optimizer), bandit, epochs=2)
    steps = 24 - 3 * history["taken_back"][-1]
    assert 18 <= steps == keras.ops.convert_to_numpy(optimizer.iterations)


def test_multi_optimizer_gets_one_rate():
    first = keras.optimizers.SGD(0.1, name="first")
    choose = keras.optimizers.OptimizerMap(first)
    choose[".*/bias"] = keras.optimizers.SGD(0.2, name="second")
    model = make_model(keras.optimizers.MultiOptimizer(choose))
    history = fit(model, BanditLearningRate(RATES, steps_per_pull=5))
    rates = [history[f"learning_rate_{name}"] for name in ("first", "second")]
    assert rates[0] == rates[1]


def test_schedule_is_refused():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = make_model(keras.optimizers.SGD(schedule))
    with pytest.raises(ValueError, match="`BanditLearningRate` sets the"):
        fit(model, BanditLearningRate(RATES))


@pytest.mark.quick
def test_killed_run_goes_on(tmp_path):
    def run(*others, folder):
        bandit = BanditLearningRate([0.001, 0.01, 0.03], steps_per_pull=5)
        backup = keras.callbacks.BackupAndRestore(folder)
        with contextlib.suppress(Killed):
            fit(make_model(), bandit, backup, *others)
        return bandit

    whole = run(folder=tmp_path / "whole")
    run(KillAt(3), folder=tmp_path / "killed")
    assert run(folder=tmp_path / "killed")._memory == whole._memory


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rates": [0.1]},
        {"learning_rates": [0.1, 0.1]},
        {"learning_rates": [0.0, 0.1]},
        {"steps_per_pull": 0},
        {"discount": 1.0},
        {"max_growth": 1.0},
        {"verbose": 2},
    ],
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(
        ValueError, match=f"`{name}` must be .*Received: {name}"
    ):
        BanditLearningRate(**{"learning_rates": RATES, **arguments})


def test_report(capsys):
    rates = [0.01, 0.02, 1e30]
    fit(make_model(), BanditLearningRate(rates, 3, verbose=1), epochs=2)
    out = capsys.readouterr().out
    assert "taking back the steps of a pull at the learning rate 1e+30." in out
