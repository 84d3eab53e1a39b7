import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient import backend
from keras_efficient.layers import Tiled
from keras_efficient.utils.saved_activation_bytes import as_function
from tests.gradients import ENDS
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors

LENGTH, WIDTH = 7, 4


def feed_forward(width=12):
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(width, "gelu", activity_regularizer="l2"),
            layers.Dense(WIDTH),
        ]
    )


def model(tiles=None, length=LENGTH, width=12, make=feed_forward, **arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((length, WIDTH))
    layer = make(width)
    if tiles:
        layer = Tiled(layer, tiles=tiles, **arguments)
    return keras.Model(inputs, layer(layers.Dense(WIDTH)(inputs)))


@pytest.mark.parametrize("mode", ENDS)
def test_outputs_and_gradients_are_those_of_the_layer(mode):
    x = [batch(2, LENGTH, WIDTH)]
    theirs = gradients(model(), x, mode)
    for tiles, axis in ((3, 1), (20, -2), (1, 1)):
        ours = gradients(model(tiles, axis=axis), x, mode)
        for a, b in zip(ours, theirs, strict=True):
            assert max(relative_errors(a, b)) < 1e-6


def test_lengths_that_a_graph_does_not_know():
    tiled = model(3, None)
    tiled.compile("sgd", "mse")
    plain = model(None, None)
    plain.compile("sgd", "mse")
    for length in (7, 4, 9):
        x = batch(2, length, WIDTH)
        losses = [m.train_on_batch(x, x) for m in (tiled, plain)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    for a, b in zip(tiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_peak_is_that_of_a_tile():
    length, width = 512, 64

    def peak(tiles, length):
        fn, params = as_function(model(tiles, length, width))
        return backend.peak_bytes(
            fn, params, ops.ones((1, length, WIDTH), "float32")
        )

    plain, tiled = peak(None, length), peak(16, length)
    assert tiled < 0.3 * plain
    # Control: what grows with the sequence is its width, not the layer's.
    growth = peak(16, 2 * length) - tiled
    assert growth < 0.3 * (peak(None, 2 * length) - plain)


@once
def test_masks_and_dropout():
    seen = []

    class Masked(layers.Layer):
        def call(self, x, mask=None):
            seen.append(to_numpy([mask])[0])
            return x

    tokens = np.array([[1, 2, 0, 0, 3]])
    x = layers.Embedding(5, WIDTH, mask_zero=True)(tokens)
    y = Tiled(Masked(), tiles=2)(x)
    np.testing.assert_array_equal(np.concatenate(seen, 1), tokens > 0)
    np.testing.assert_array_equal(to_numpy([y])[0], to_numpy([x])[0])
    drop = Tiled(layers.Dropout(0.5, seed=1), tiles=2)
    halves = np.split(
        to_numpy([drop(ops.ones((1, 64, 1)), training=True)])[0], 2, 1
    )
    assert np.any(halves[0] != halves[1])
    assert 20 < np.count_nonzero(halves) < 44


@once
def test_what_looks_at_other_positions_is_refused():
    x = ops.ones((2, 6, WIDTH))
    with pytest.raises(ValueError, match="moving_mean"):
        Tiled(layers.BatchNormalization())(x, training=True)
    with pytest.raises(ValueError, match="positions of its input"):
        Tiled(layers.Conv1D(WIDTH, 2), tiles=2)(x)
    for arguments, error, words in (
        ((3,), TypeError, "keras.layers.Layer"),
        ((layers.Dense(1), 0), ValueError, "micro_batches"),
        ((layers.Dense(1), 1, 0), ValueError, "positive integer"),
    ):
        with pytest.raises(error, match=words):
            Tiled(*arguments)
