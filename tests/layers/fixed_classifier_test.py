"""Heads whose targets are given: angles, saving, what is trained."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.layers import FixedClassifier
from tests.gradients import gradients
from tests.marks import once

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
EMBEDDINGS = np.random.default_rng(1).normal(size=(4, 6))
LABELS = np.array([0, 1, 2, 3, 0])


def angles(layer):
    t = np.array(ops.convert_to_numpy(layer.kernel), "float64").T
    np.testing.assert_allclose(np.linalg.norm(t, axis=-1), 1, rtol=1e-5)
    return t @ t.T


def test_logits_are_angles():
    layer = FixedClassifier(4, EMBEDDINGS, temperature=0.5)
    t = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=-1, keepdims=True)
    unit = X / np.linalg.norm(X, axis=-1, keepdims=True)
    expected = unit @ t.T / 0.5
    found = ops.convert_to_numpy(layer(X))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = FixedClassifier.from_config(layer.get_config())
    np.testing.assert_array_equal(ops.convert_to_numpy(again(X)), found)
    zeros = ops.convert_to_numpy(layer(0 * X))
    np.testing.assert_array_equal(zeros, np.zeros((5, 4)))


@once
@pytest.mark.parametrize("size", [3, 6])
def test_a_simplex_has_equal_angles(size):
    layer = FixedClassifier(4, "simplex")
    layer.build((None, size))
    expected = np.where(np.eye(4), 1, -1 / 3)
    np.testing.assert_allclose(angles(layer), expected, atol=1e-6)


@once
def test_orthogonal_targets():
    layer = FixedClassifier(4, "orthogonal", seed=3)
    layer.build((None, 6))
    np.testing.assert_allclose(angles(layer), np.eye(4), atol=1e-6)
    other = FixedClassifier(4, "orthogonal", seed=4)
    other.build((None, 6))
    assert np.abs(layer.get_weights()[0] - other.get_weights()[0]).max() > 0.1


def test_features_learn_and_targets_do_not(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(6), FixedClassifier(4)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    kernel = model.layers[1].get_weights()[0]
    losses = model.fit(X, LABELS, epochs=9, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(model.layers[1].get_weights()[0], kernel)
    assert len(model.trainable_variables) == 2
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(X, verbose=0), model.predict(X, verbose=0)
    )


@once
def test_sixteen_bits_do_not_overflow():
    model = keras.Sequential(
        [keras.Input((6,)), FixedClassifier(4, dtype="mixed_float16")]
    )
    y, (dx,), _ = gradients(model, [2000 * X])
    plain = FixedClassifier(4)(X)
    np.testing.assert_allclose(y[0], ops.convert_to_numpy(plain), atol=0.02)
    assert np.isfinite(dx).all()


@once
@pytest.mark.parametrize(
    "arguments, match",
    [
        ((1,), "num_classes"),
        ((4, "corners"), "targets"),
        ((3, EMBEDDINGS), "shape"),
        ((4, 0 * EMBEDDINGS), "zeros"),
        ((4, "simplex", 0.0), "temperature"),
    ],
)
def test_bad_arguments_are_told(arguments, match):
    with pytest.raises(ValueError, match=match):
        FixedClassifier(*arguments)


@once
def test_targets_that_do_not_fit_are_told():
    for targets in ("simplex", "orthogonal", EMBEDDINGS):
        with pytest.raises(ValueError, match="features"):
            FixedClassifier(4, targets).build((None, 2))
