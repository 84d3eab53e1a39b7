"""Callbacks that write to the examples of a `SelectableDataset`."""

import contextlib

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import AbilityCurriculum
from keras_efficient.callbacks import InstanceLearningRate
from keras_efficient.callbacks import LearningCurve
from keras_efficient.callbacks import SelfDistillation
from keras_efficient.callbacks.item_response import ability
from keras_efficient.utils import SelectableDataset
from tests.callbacks.killed import KillAt
from tests.callbacks.killed import Killed
from tests.marks import once

N, CLASSES = 48, 3
X = np.random.default_rng(0).normal(size=(N, 4)).astype("float32")
LABELS = X[:, :CLASSES].argmax(-1)
ONE_HOT = np.eye(CLASSES, dtype="float32")[LABELS]
HARD = np.sort(X, -1)[:, -2] - np.sort(X, -1)[:, -1]


def classifier(activation="softmax"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(CLASSES, activation)]
    )
    model.compile(
        keras.optimizers.SGD(0.3),
        keras.losses.CategoricalCrossentropy(from_logits=activation is None),
        metrics=["accuracy"],
    )
    return model


def dataset(targets=ONE_HOT, shuffle=True):
    return SelectableDataset(X, targets, batch_size=8, shuffle=shuffle)


class Seen(keras.callbacks.Callback):
    """What each epoch was trained on."""

    def __init__(self, data):
        super().__init__()
        self.data, self.targets, self.outputs = data, [], []

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.targets.append(self.data.targets.copy())

    def on_epoch_end(self, epoch, logs=None):
        self.outputs.append(self.model.predict(X, verbose=0))


def test_targets_are_labels_mixed_with_what_the_epoch_before_said():
    data = dataset()
    seen = Seen(data)
    callback = SelfDistillation(data, alpha=0.6)
    classifier().fit(data, epochs=3, verbose=0, callbacks=[callback, seen])
    assert data.targets is ONE_HOT  # put back
    np.testing.assert_array_equal(seen.targets[0], ONE_HOT)
    for epoch, weight in ((1, 0.4), (2, 0.6)):
        expected = (1 - weight) * ONE_HOT + weight * seen.outputs[epoch - 1]
        assert seen.targets[epoch].dtype == "float16"
        np.testing.assert_allclose(seen.targets[epoch], expected, atol=1e-3)


@once
def test_logits_become_probabilities():
    data = dataset()
    seen = Seen(data)
    callback = SelfDistillation(data, 1.0, from_logits=True, dtype="float32")
    model = classifier(activation=None)
    model.fit(data, epochs=2, verbose=0, callbacks=[callback, seen])
    expected = keras.ops.softmax(seen.outputs[0])
    expected = keras.ops.convert_to_numpy(expected)
    np.testing.assert_allclose(seen.targets[1], expected, atol=1e-6)


def test_products_are_those_of_gradients():
    rng = np.random.default_rng(2)
    w, meta = rng.normal(size=4), rng.normal(size=(6, 4))
    goal, meta_goal = rng.normal(size=(N, 1)), rng.normal(size=(6, 1))
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile("sgd", "mse")
    model.set_weights([w[:, None]])
    callback = InstanceLearningRate(dataset(goal), (meta, meta_goal))
    callback.set_model(model)
    v = (2 * (meta @ w[:, None] - meta_goal) * meta).mean(0)
    each = 2 * (X @ w[:, None] - goal) * X
    expected = each @ v
    np.testing.assert_allclose(
        callback.products(),
        expected,
        rtol=1e-3,
        atol=1e-3 * abs(expected).max(),
    )
    np.testing.assert_allclose(model.get_weights()[0][:, 0], w, rtol=1e-6)


@once
def test_wrong_targets_get_small_rates():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 20)), rng.normal(size=(20, 1))
    targets, wrong = x @ w, rng.random(200) < 0.2
    targets[wrong] = 5 * rng.normal(size=(wrong.sum(), 1))
    meta = rng.normal(size=(40, 20)).astype("float32")

    def error(*make):
        data = SelectableDataset(x.astype("float32"), targets, batch_size=20)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        callbacks = [f(data, (meta, meta @ w)) for f in make]
        model.fit(data, epochs=20, verbose=0, callbacks=callbacks)
        return np.linalg.norm(model.get_weights()[0] - w), data.sample_weight

    learned, rates = error(InstanceLearningRate)
    assert np.isclose(rates.mean(), 1, rtol=1e-5)
    assert rates[wrong].mean() < 0.5 * rates[~wrong].mean()
    assert learned < 0.5 * error()[0]


@once
def test_selection_and_fall_back_by_hand():
    difficulties = np.arange(N) / 10 - 2.0
    callback = AbilityCurriculum(
        dataset(), difficulties, (X, LABELS, HARD), min_examples=5, step=0.5
    )
    model = classifier()
    callback.set_model(model)
    callback.on_epoch_begin(0)
    right = model.predict(X, verbose=0).argmax(-1) == LABELS
    theta = ability(right, HARD)
    data = callback.dataset
    expected = np.flatnonzero(difficulties <= theta)
    np.testing.assert_array_equal(
        data.selection, expected if len(expected) > 5 else np.arange(5)
    )
    with pytest.raises(ValueError, match="`fit` must train on the dataset"):
        callback.on_epoch_begin(1)
    data.on_epoch_begin()  # as Keras does
    callback.on_epoch_begin(1)  # no abler: a step
    logs = {}
    callback.on_epoch_end(1, logs)
    assert np.isclose(logs["ability"], theta + 0.5)
    expected = np.flatnonzero(difficulties <= theta + 0.5)
    assert logs["selected"] == max(5, len(expected))
    hardest = AbilityCurriculum(
        dataset(), difficulties + 99, (X, LABELS, HARD), min_examples=5
    )
    hardest.set_model(model)
    hardest.on_epoch_begin(0)
    np.testing.assert_array_equal(hardest.dataset.selection, np.arange(5))


@once
def test_the_easiest_of_each_class():
    order = np.argsort(LABELS, kind="stable").argsort().astype(float)
    callback = AbilityCurriculum(
        *(dataset(), order, (X, LABELS, HARD)), min_examples=6, balanced=True
    )
    counts = np.bincount(LABELS[callback._always])
    np.testing.assert_array_equal(counts, [2, 2, 2])


CALLBACKS = {
    "self distillation": SelfDistillation,
    "instance learning rate": lambda data: InstanceLearningRate(
        data, (X[:8], ONE_HOT[:8])
    ),
    # By wrong labels it falls, so that what it was before matters.
    "ability": lambda data: AbilityCurriculum(
        data, HARD, (X, (LABELS + 1) % CLASSES, HARD), min_examples=8
    ),
    "learning curve": lambda data: LearningCurve("loss", tolerance=1e-9),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_killed_run_goes_on_bit_for_bit(name, tmp_path):
    def run(folder, *others):
        # A learning curve does not count the epochs of the dataset.
        data = dataset(shuffle=name != "learning curve")
        callback = CALLBACKS[name](data)
        backup = keras.callbacks.BackupAndRestore(folder)
        model = classifier()
        history = None
        with contextlib.suppress(Killed):
            callbacks = [callback, backup, *others]
            # Keras would shuffle batches by a generator that is not restored.
            history = model.fit(
                data, epochs=4, verbose=0, callbacks=callbacks, shuffle=False
            )
        return model, data, history and history.history

    whole, whole_data, history = run(tmp_path / "whole")
    run(tmp_path / "killed", KillAt(2))
    resumed, data, rest = run(tmp_path / "killed")
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(data.selection, whole_data.selection)
    for key in history:
        np.testing.assert_array_equal(rest[key], history[key][2:])


@once
@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: SelfDistillation(object()), TypeError, "Selectable"),
        (lambda: SelfDistillation(dataset(), 2.0), ValueError, "alpha"),
        (lambda: SelfDistillation(dataset(LABELS)), ValueError, "one-hot"),
        (
            lambda: InstanceLearningRate(dataset(), None, rate=0),
            *(ValueError, "rate"),
        ),
        (
            lambda: InstanceLearningRate(dataset(), None, max_rate=1),
            *(ValueError, "max_rate"),
        ),
        (
            lambda: AbilityCurriculum(dataset(), HARD[1:], (X, LABELS, HARD)),
            *(ValueError, "difficulties"),
        ),
        (
            lambda: AbilityCurriculum(dataset(), HARD, (X, LABELS, HARD[1:])),
            *(ValueError, "validation"),
        ),
    ],
)
def test_bad_arguments_are_told(make, error, match):
    with pytest.raises(error, match=match):
        make()
