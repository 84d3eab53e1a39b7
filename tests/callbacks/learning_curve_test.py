"""Fits of power laws, and when they stop a run."""

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import LearningCurve
from keras_efficient.callbacks.power_law import fit_power_law
from tests.marks import once

pytestmark = once
EPOCHS = np.arange(1, 41)


def run(curve, epochs=len(EPOCHS), **settings):
    """Return `(epoch of the stop or None, last logs)`."""
    callback = LearningCurve("value", **settings)
    callback.set_model(keras.Model())
    callback.set_params({"epochs": epochs})
    callback.on_train_begin()
    callback.model.stop_training = False
    logs = {}
    for epoch, value in enumerate(curve):
        logs = {"value": value}
        callback.on_epoch_end(epoch, logs)
        if callback.model.stop_training:
            return epoch, logs
    return None, logs


@pytest.mark.parametrize("c, a, b", [(0.95, 0.5, 0.7), (0.8, 0.3, 2.0)])
def test_exact_curves_are_found(c, a, b):
    found = fit_power_law(EPOCHS[:8], c - a * EPOCHS[:8] ** -b, 1.0)
    np.testing.assert_allclose(found, (c, a, b), rtol=1e-6)


def test_the_asymptote_keeps_its_bounds():
    c, a, _ = fit_power_law([1, 2, 3, 4], [0.1, 0.4, 0.7, 0.95], 1.0)
    assert 0.95 <= c <= 1 and a >= 0
    c, a, _ = fit_power_law([1, 2, 3], [0.9, 0.8, 0.7], 1.0)  # it falls
    assert 0.9 <= c <= 1 and a >= 0


def test_it_stops_where_little_is_left():
    curve = 0.9 - 0.5 / EPOCHS
    stop, logs = run(curve, tolerance=0.0501, patience=3)
    assert stop == 11  # 0.5 / 10 is the first within it, at index 9
    assert np.isclose(logs["asymptote"], 0.9)
    assert np.isclose(logs["remaining"], 0.5 / 12)
    assert np.isclose(logs["predicted_value"], 0.9 - 0.5 / 40)
    assert run(curve, tolerance=1e-6)[0] is None
    assert run(curve, tolerance=0.05, stop=False)[0] is None


def test_it_stops_when_the_target_is_out_of_reach():
    curve = 0.9 - 0.5 / EPOCHS
    settings = {"tolerance": 1e-6, "patience": 2}
    assert run(curve, target=0.95, **settings)[0] == 3  # the second fit
    assert run(curve, target=0.88, **settings)[0] is None
    assert run(curve, target=0.88, horizon=20, **settings)[0] == 3


def test_a_loss_is_upside_down():
    stop, logs = run(0.2 + 0.5 / EPOCHS, tolerance=0.0501, mode="min")
    assert stop == 11 and np.isclose(logs["asymptote"], 0.2)
    assert LearningCurve("val_loss").mode == "min"
    assert LearningCurve().mode == "max"


def test_under_noise_the_asymptote_is_near():
    rng = np.random.default_rng(0)
    errors, early = [], 0
    for _ in range(40):
        b = rng.uniform(0.5, 1.5)
        c = rng.uniform(0.7, 0.95)
        curve = c - 0.4 * EPOCHS**-b
        noisy = curve + rng.normal(size=len(curve)) * 0.005
        errors.append(abs(fit_power_law(EPOCHS[:20], noisy[:20], 1.0)[0] - c))
        stop, _ = run(noisy, tolerance=0.02)
        early += stop is not None and c - curve[stop] > 2 * 0.02
    assert np.median(errors) < 0.03
    assert early <= 2


def test_what_is_not_finite_is_left_out():
    curve = 0.9 - 0.5 / EPOCHS
    curve[2] = np.nan
    assert np.isclose(run(curve, tolerance=1e-6)[1]["asymptote"], 0.9)


@pytest.mark.parametrize(
    "settings", [{"mode": "up"}, {"tolerance": 0}, {"patience": 0}]
)
def test_bad_arguments_are_told(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LearningCurve(**settings)


def test_a_missing_name_is_told():
    with pytest.raises(ValueError, match="'value', which must be in the logs"):
        LearningCurve("value").on_epoch_end(0, {"loss": 1.0})
