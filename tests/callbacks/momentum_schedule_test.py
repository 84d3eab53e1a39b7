"""Momentum that moves during `fit`, against steps by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.callbacks import MomentumSchedule
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleSequence
from tests.gradients import to_numpy
from tests.twins import batch


class Counted(MomentumCoupling):
    calls = 0

    def couple(self, streams, evaluate):
        Counted.calls += 1
        return super().couple(streams, evaluate)


def network():
    keras.utils.set_random_seed(3)
    blocks = [Counted(layers.Dense(2, "tanh")) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), ReversibleSequence(blocks)])
    model.compile(keras.optimizers.SGD(0.3), "mse")
    return model, blocks


def test_steps_equal_those_by_hand_and_nothing_is_traced_anew(tmp_path):
    x, y = batch(24, 4), batch(24, 4)[::-1]
    model, blocks = network()
    schedule = MomentumSchedule(0.4, 0.8, steps=4)

    def fit(rows):
        model.fit(
            x[rows],
            y[rows],
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[schedule],
        )

    fit(slice(0, 8))
    calls = Counted.calls
    np.testing.assert_allclose(blocks[1].momentum.numpy(), 0.5, rtol=1e-6)
    fit(slice(8, 24))  # goes on from the step of the optimizer
    if keras.config.backend() != "torch":
        assert Counted.calls == calls
    by_hand, blocks = network()
    for step, m in enumerate([0.4, 0.5, 0.6, 0.7, 0.8, 0.8]):
        for block in blocks:
            block.momentum.assign(m)
        rows = slice(4 * step, 4 * step + 4)
        by_hand.train_on_batch(x[rows], y[rows])
    assert len(model.weights) == 6
    for ours, expected in zip(model.weights, by_hand.weights):
        np.testing.assert_allclose(
            *to_numpy([ours, expected]), rtol=1e-5, atol=1e-6
        )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(
        tmp_path / "model.keras", custom_objects={"Counted": Counted}
    )
    np.testing.assert_array_equal(*to_numpy([again(x), model(x)]))


def test_bad_arguments_are_refused():
    for arguments in ((0.0, 0.5, 3), (0.5, 1.0, 3), (0.5, 0.6, 0)):
        with pytest.raises(ValueError, match="`start` and `end` must be betw"):
            MomentumSchedule(*arguments)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="with 0 of them"):
        model.fit(
            batch(4, 4),
            batch(4, 4),
            verbose=0,
            callbacks=[MomentumSchedule(0.4, 0.8, 4)],
        )
