"""A dataset whose targets, weights and choice change between epochs."""

import keras
import numpy as np
import pytest

from keras_efficient.utils import SelectableDataset
from keras_efficient.utils import item_difficulties
from tests.marks import once

X = np.arange(10.0)[:, None]


def epoch_of(data):
    data.on_epoch_begin()
    return [data[i] for i in range(data.num_batches)]


@once
def test_an_epoch_shows_each_example_once():
    data = SelectableDataset(X, X, batch_size=4)
    first, second = (
        np.concatenate([x for x, _ in epoch_of(data)])[:, 0] for _ in range(2)
    )
    assert list(first) != list(second)
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), X[:, 0])
    data.epoch = 0
    again = np.concatenate([x for x, _ in epoch_of(data)])[:, 0]
    np.testing.assert_array_equal(again, first)


@once
def test_steps_stay_as_many_when_few_are_selected():
    data = SelectableDataset({"a": X}, X, batch_size=4, shuffle=False)
    data.selection = np.array([1, 5, 7])
    batches = epoch_of(data)
    assert [len(y) for _, y in batches] == [4, 4, 2]
    seen = np.concatenate([x["a"] for x, _ in batches])[:, 0]
    np.testing.assert_array_equal(seen, [1, 5, 7, 1, 5, 7, 1, 5, 7, 1])
    data.selection = np.isin(np.arange(10), (1, 5, 7))
    again = np.concatenate([x["a"] for x, _ in epoch_of(data)])[:, 0]
    np.testing.assert_array_equal(again, seen)
    for wrong in ([], [10], [-1], [0.5], [True]):
        data.selection = wrong
        with pytest.raises(ValueError, match="`selection` must.*Received"):
            data.on_epoch_begin()
    data = SelectableDataset(X, X, None, 4, steps_per_epoch=2)
    assert [len(y) for _, y in epoch_of(data)] == [4, 4]


def test_the_next_epoch_trains_on_what_was_written():
    """Also when steps are compiled and batches are read ahead."""
    ones = np.ones(10, "float32")
    data = SelectableDataset(X, X * 0, ones, batch_size=5)

    class Write(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            data.targets = data.targets + 1
            data.sample_weight = data.sample_weight * 2

    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    losses = model.fit(data, epochs=3, verbose=0, callbacks=[Write()]).history
    np.testing.assert_allclose(losses["loss"], [0, 1 * 2, 4 * 4], rtol=1e-6)


@once
@pytest.mark.parametrize(
    "arguments, match",
    [
        ((X, X[1:]), "as many"),
        ((X[:0], X[:0]), "at least one"),
        ((X, X, X[1:, 0]), "as many"),
        ((X, X, None, 0), "batch_size"),
        ((X, X, None, 2, -1), "steps_per_epoch"),
    ],
)
def test_bad_arguments_are_told(arguments, match):
    with pytest.raises(ValueError, match=match):
        SelectableDataset(*arguments)


@once
def test_nothing_selected_is_told():
    data = SelectableDataset(X, X)
    data.selection = []
    with pytest.raises(ValueError, match="selection"):
        data.on_epoch_begin()


@once
def test_difficulties_are_in_the_order_of_the_truth():
    rng = np.random.default_rng(0)
    theta, b = rng.normal(size=30), rng.normal(size=400)
    p = 1 / (1 + np.exp(b - theta[:, None]))
    found = item_difficulties(rng.random(p.shape) < p)
    ranks = [np.argsort(np.argsort(v)) for v in (b, found)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8
    best = item_difficulties((b < 10 * (theta[:, None])).astype(int))
    assert np.isfinite(best).all()
    with pytest.raises(ValueError, match="people, items"):
        item_difficulties([[2, 0]])
