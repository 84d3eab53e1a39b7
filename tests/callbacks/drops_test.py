"""`AutoDrop` drops on time, and reports what lasts."""

import re
import warnings

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import AutoDrop
from keras_efficient.callbacks import BanditLearningRate
from keras_efficient.callbacks.learning_rates import Count
from keras_efficient.callbacks.learning_rates import named_optimizers
from tests.callbacks.auto_drop_modes_test import Rates
from tests.callbacks.auto_drop_modes_test import fit
from tests.callbacks.auto_drop_modes_test import make_model
from tests.callbacks.auto_drop_modes_test import simulate


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(
    "epochs, steps, expected",
    [
        (20, 2, [36]),
        (10, 5, [45]),
        (7, 13, [82]),
        (10, 1, [9]),
        (30, 1, [27]),
        (3, 7, [19]),
        (1, 130, [117]),
        # No step is left after the first one past nine tenths.
        (3, 3, []),
        (1, 1, []),
    ],
)
def test_the_last_drop(epochs, steps, expected, is_known):
    if epochs == 1 and not is_known:
        expected = []  # nobody knows how long the run is
    callback = AutoDrop()
    simulate(callback, epochs, steps, is_known)
    assert callback.drop_steps == expected
    assert callback.drops == [(step - 1) // steps for step in expected]


def test_steps_after_the_last_drop_are_at_its_rate():
    rates, callback, model = Rates(), AutoDrop(), make_model()
    history = fit(model, callback, rates, steps=5, epochs=10)
    expected = np.repeat([0.1, 0.03], [45, 5])
    np.testing.assert_allclose(rates.values, expected, rtol=1e-6)
    assert history["drops"] == [0.0] * 8 + [1.0] * 2


def test_no_drop_for_a_step_that_does_not_come():
    """Steps to and fro: a drop after 13 windows, also from nine tenths on."""
    callback = AutoDrop(window_steps=1, factor=0.999)
    model = make_model(keras.optimizers.SGD(0.5), loss="mse")
    fit(model, callback, steps=130)
    assert callback.drop_steps[0] == 14 and callback.drop_steps[-1] == 117


def test_a_window_that_was_open_begins_anew():
    """Its steps at the old rate count no more, and none is left out."""
    callback = AutoDrop(window_steps=20)
    simulate(callback, 1, 59)  # 54 is not the end of a window
    assert callback.drop_steps == [54]
    assert callback._window_start == 54
    (point,) = callback._velocity.points
    # It begins at 1, and goes by 0.1 a step.
    np.testing.assert_allclose(point[0], 1 + 5.4, rtol=1e-5)


class SetBack(keras.callbacks.Callback):
    """Sets the learning rate at the end of given epochs."""

    def __init__(self, *epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch in self.epochs:
            self.model.optimizer.learning_rate = 0.1


def drops_with(other, epochs=9):
    """The rule of 2021 drops after the epochs 3 and 6."""
    callback = AutoDrop("epoch")
    history = fit(make_model(), callback, other, epochs=epochs)
    return callback.drops, history["drops"][-1]


def test_a_drop_that_another_callback_undoes():
    constant = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)
    with pytest.warns(UserWarning, match="to 0.02, and it was set to 0.1") as w:
        assert drops_with(constant) == ([], 0.0)
    assert len([x for x in w if "AutoDrop" in str(x.message)]) == 1


def test_the_newest_drop_is_undone_when_training_has_ended():
    with pytest.warns(UserWarning, match="it was set to 0.1 since"):
        assert drops_with(SetBack(6), epochs=7)[0] == [3]


def test_a_drop_that_has_lasted_was_made():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert drops_with(SetBack(5)) == ([3, 6], 2.0)
        lower = keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1, min_delta=9)
        assert drops_with(lower)[0] == [3, 6]


@pytest.mark.parametrize("mode", ["auto", "epoch"])
def test_an_optimizer_that_never_steps(mode, capsys):
    """As that of a model whose `train_step` has optimizers of its own."""
    callback = AutoDrop(mode, verbose=1)
    with pytest.warns(UserWarning, match="'descent', which has not taken"):
        simulate(
            callback,
            10,
            5,
            is_trained=False,
            optimizer=keras.optimizers.SGD(0.1, name="descent"),
        )
    assert callback.drops == callback.drop_steps == []
    rate = callback.model.optimizer.learning_rate
    assert float(keras.ops.convert_to_numpy(rate)) == pytest.approx(0.1)
    assert "reducing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "callback", [AutoDrop, lambda: BanditLearningRate([0.1, 0.2])]
)
def test_a_model_without_an_optimizer(callback):
    model = make_model()
    model.compile(optimizer=None, loss="mse")
    with pytest.raises(ValueError, match="compiled with `optimizer=None`"):
        fit(model, callback())


def test_optimizers_of_one_name_have_keys_of_their_own():
    two = [keras.optimizers.SGD(rate, name="sgd") for rate in (0.1, 0.2)]
    optimizer = keras.optimizers.OptimizerMap(two[0])
    optimizer[".*/bias"] = two[1]
    model = make_model(keras.optimizers.MultiOptimizer(optimizer))
    keys = [key for key, _ in named_optimizers(model)]
    assert keys == ["learning_rate_sgd", "learning_rate_sgd_1"]


@pytest.mark.parametrize("verbose", [1, 2])
def test_the_progress_bar_shows_integers(verbose, capsys):
    callback = AutoDrop("epoch")
    fit(make_model(), callback, epochs=5, verbose=verbose)
    shown = re.findall(r"drops: (\S+)", capsys.readouterr().out)
    assert shown == ["0", "0", "0", "1", "1"]


def test_counts_are_floats():
    count = Count(3)
    assert count == 3.0 and isinstance(count, float)
    assert f"{count} {count:.4f} {count:02d}" == "3 3 03"
    assert f"{count / 2:.2f}" == "1.50"
