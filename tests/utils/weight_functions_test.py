"""Functions over weights: task vectors, heads, stitches."""

import keras
import numpy as np
import pytest

from keras_efficient.utils import align_classifier
from keras_efficient.utils import class_statistics
from keras_efficient.utils import least_squares_stitch
from keras_efficient.utils import scale_task_vector
from tests.marks import once

RNG = np.random.default_rng(0)
BLOCKS = ["block_0", "block_1", "block_2"]


def network(outputs=2):
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((3,)),
            dense(4, name="stem"),
            *[dense(4, name=name) for name in BLOCKS],
            keras.layers.BatchNormalization(name="norm"),
            dense(outputs, name="head"),
        ]
    )


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def noisy(model, outputs=2):
    other = network(outputs)
    other.set_weights([RNG.normal(size=w.shape) for w in weights(other)])
    return other


@once
def test_scales_by_block():
    model = network()
    tuned = noisy(model)
    found = scale_task_vector(model, tuned, BLOCKS, 0.2, 0.6, head=0.7)
    scales = [0.2] * 2 + [0.2] * 2 + [0.5] * 2 + [0.8] * 2
    scales += [0.7] * 2 + [1.0] * 2 + [0.7] * 2  # its statistics are no tasks
    rows = zip(found, weights(model), weights(tuned), scales, strict=True)
    for ours, before, after, scale in rows:
        np.testing.assert_allclose(
            ours, before + scale * (after - before), atol=1e-6
        )


@once
def test_ends_are_the_models_themselves():
    model = network()
    tuned = noisy(model)
    whole = scale_task_vector(model, tuned, BLOCKS, 1.0, 0.0)
    none = scale_task_vector(model, tuned, BLOCKS, 0.0, 0.0, head=0.0)
    for i, variable in enumerate(model.weights):
        np.testing.assert_allclose(whole[i], weights(tuned)[i], atol=1e-6)
        expected = model if variable.trainable else tuned
        np.testing.assert_array_equal(none[i], weights(expected)[i])
    by_default = scale_task_vector(model, tuned, BLOCKS, beta=0.4)
    expected = scale_task_vector(model, tuned, BLOCKS, 0.6, 0.4)
    for a, b in zip(by_default, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@once
def test_merging():
    model = network()
    tuned = [noisy(model) for _ in range(2)]
    start = weights(model)
    taus = [[b - a for a, b in zip(start, weights(t))] for t in tuned]
    trained = [i for i, v in enumerate(model.weights) if v.trainable]
    each = sum(np.abs(tau[i]).sum() for tau in taus for i in trained)
    whole = sum(np.abs(taus[0][i] + taus[1][i]).sum() for i in trained)
    alpha = each / (2 * whole)
    found = scale_task_vector(model, tuned, BLOCKS, beta=0.5)
    for i, scale in ((0, alpha), (4, alpha + 0.25), (6, alpha + 0.5)):
        expected = start[i] + scale * (taus[0][i] + taus[1][i])
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@once
def test_heads_of_another_shape_stay():
    model = network()
    tuned = noisy(model, outputs=5)
    found = scale_task_vector(model, tuned, BLOCKS)
    np.testing.assert_array_equal(found[-1], weights(tuned)[-1])
    tuned.set_weights(found)
    with pytest.raises(ValueError, match="block_9"):
        scale_task_vector(model, tuned, [*BLOCKS, "block_9"])
    with pytest.raises(ValueError, match="at least two"):
        scale_task_vector(model, tuned, BLOCKS[:1])
    with pytest.raises(ValueError, match="same weights"):
        scale_task_vector(model, keras.Sequential(), BLOCKS)


@once
def test_statistics_are_those_of_numpy():
    x, labels = RNG.normal(size=(40, 3)), np.arange(40) % 2
    means, covariances = class_statistics(x, labels)
    for c in (0, 1):
        rows = x[labels == c]
        np.testing.assert_allclose(means[c], rows.mean(0), rtol=1e-5)
        expected = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(covariances[c], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="none of class 1"):
        class_statistics(x, 2 * labels)
    with pytest.raises(ValueError, match="one integer"):
        class_statistics(x, labels[1:])
    for wrong in (labels - 1, labels / 2):
        with pytest.raises(ValueError, match="integer of at least 0"):
            class_statistics(x, wrong)


def test_a_head_that_favours_new_classes_is_repaired():
    centres = 2 * np.eye(4, 6)
    labels = RNG.integers(4, size=400)
    x = centres[labels] + RNG.normal(size=(400, 6)) * 0.5
    head = keras.layers.Dense(4)
    head.build((None, 6))
    # The last two are new.
    head.set_weights([centres.T, np.array([0.0, 0.0, 9.0, 9.0])])

    def accuracy():
        kernel, bias = head.get_weights()
        return np.mean((x @ kernel + bias).argmax(-1) == labels)

    before = accuracy()
    losses = align_classifier(
        *(head, *class_statistics(x, labels)),
        tasks=[0, 0, 1, 1],
        samples=64,
        epochs=6,
        learning_rate=0.05,
        batch_size=16,
    )
    assert before < 0.6 and accuracy() > 0.9
    assert len(losses) == 6 and losses[-1] < losses[0]


@once
def test_bad_statistics_are_told():
    head = keras.layers.Dense(2)
    means, covariances = np.zeros((2, 3)), np.zeros((2, 3, 3))
    with pytest.raises(ValueError, match="built"):
        align_classifier(head, means, covariances)
    head.build((None, 3))
    with pytest.raises(ValueError, match="`epochs` must be"):
        align_classifier(head, means, covariances, epochs=0)
    head.trainable = False
    with pytest.raises(ValueError, match="have trainable weights"):
        align_classifier(head, means, covariances)
    for arguments in (
        (means, covariances[:1]),
        (means, covariances, [0]),
        (means, covariances, [0, 2]),
    ):
        with pytest.raises(ValueError, match="must be of shapes"):
            align_classifier(head, *arguments)


@once
def test_a_stitch_is_least_squares():
    x, y = RNG.normal(size=(25, 2, 4)), RNG.normal(size=(25, 2, 3))
    stitch = least_squares_stitch(x, y, name="stitch")
    rows = np.concatenate([x.reshape(-1, 4), np.ones((50, 1))], -1)
    expected = np.linalg.pinv(rows) @ y.reshape(-1, 3)
    kernel, bias = stitch.get_weights()
    np.testing.assert_allclose(kernel, expected[:-1], atol=1e-6)
    np.testing.assert_allclose(bias, expected[-1], atol=1e-6)
    assert stitch.name == "stitch"
    same = least_squares_stitch(x, x)
    np.testing.assert_allclose(same.get_weights()[0], np.eye(4), atol=1e-6)
    shrunk = least_squares_stitch(x, y, ridge=1e6)
    kernel, bias = shrunk.get_weights()
    assert np.abs(kernel).max() < 1e-3
    np.testing.assert_allclose(bias, y.mean((0, 1)), atol=1e-3)
    with pytest.raises(ValueError, match="as many rows"):
        least_squares_stitch(x, y[1:])
    with pytest.raises(ValueError, match="ridge"):
        least_squares_stitch(x, y, ridge=-1)
