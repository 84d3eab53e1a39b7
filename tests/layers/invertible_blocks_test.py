"""Layers that have an inverse as blocks of a run, and runs that resize."""

import keras
import numpy as np
import pytest
from keras import layers as keras_layers
from keras import ops

from keras_efficient import layers
from keras_efficient.layers.invertible.orthogonal import orthogonal
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* maps")


def function(n):
    return keras.Sequential(
        [
            keras_layers.Conv2D(n, 3, padding="same", activation="tanh"),
            keras_layers.Dropout(0.3, seed=1),
        ]
    )


def coupling(n):
    return layers.AdditiveCoupling(function(n), function(n))


def resizing(reversible=True, depth=1):
    """Every kind of block, from 8 x 8 x 2 to 2 x 2 x 32 and back."""
    blocks = [
        coupling(1),
        layers.OrthogonalMixing("householder"),
        layers.InvertibleDownsampling2D(
            2, "orthogonal", start="haar", kernel_initializer="glorot_normal"
        ),
        *[coupling(4) for _ in range(depth)],
        layers.InvertibleLeakyReLU(learned=True),
        layers.InvertibleConv2D(8, 3, padding="same"),
        layers.InvertibleDownsampling2D(
            2, "orthogonal", parametrization="householder"
        ),
        layers.OrthogonalMixing(kernel_initializer="glorot_normal"),
        layers.InvertibleUpsampling2D(2),
        layers.ReversibleSequence([coupling(4)]),
    ]
    return layers.ReversibleSequence(blocks, reversible)


def model_of(build, shape, *arguments):
    keras.utils.set_random_seed(7)
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(*arguments)(inputs))


@pytest.mark.parametrize("mode", MODES[:2])
def test_gradients_equal_those_of_the_plain_twin(mode):
    model, plain = (
        model_of(resizing, (8, 8, 2), reversible)
        for reversible in (True, False)
    )
    assert model.output_shape == (None, 4, 4, 8)
    x = batch(2, 8, 8, 2)
    found, expected = (gradients(m, [x], mode) for m in (model, plain))
    for ours, theirs in zip(found, expected):
        assert max(relative_errors(ours, theirs)) < 1e-4
    assert all(np.any(d != 0) for d in expected[2])


class Approximate(keras_layers.Layer):
    """Says so; and its inverse is far off."""

    has_exact_inverse = False

    def call(self, x):
        return x + x**3

    def inverse(self, y):
        return 0.5 * y

    def compute_output_shape(self, input_shape):
        return input_shape


@once
def test_an_approximate_inverse_is_not_used_for_gradients():
    results = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        inputs = keras.Input((8, 8, 2))
        blocks = [coupling(1), Approximate(), coupling(1)]
        run = layers.ReversibleSequence(blocks, reversible)
        model = keras.Model(inputs, run(inputs))
        results.append(gradients(model, [batch(2, 8, 8, 2)]))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4


def test_a_run_that_resizes_has_an_inverse(tmp_path):
    model = model_of(resizing, (8, 8, 2))
    run = model.layers[-1]
    x = batch(2, 8, 8, 2)
    y = run(x)
    np.testing.assert_allclose(*to_numpy([run.inverse(y)]), x, atol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(*to_numpy([again.layers[-1](x), y]), atol=1e-6)


@once
def test_bytes_kept_do_not_grow_with_depth():
    x = batch(64, 8, 8, 2)

    def kept(reversible, depth):
        model = model_of(resizing, (8, 8, 2), reversible, depth)
        return saved_activation_bytes(model, x)

    grown = kept(True, 4) - kept(True, 1)
    plain = kept(False, 4) - kept(False, 1)
    assert plain > 1e5
    assert grown < 0.05 * plain


def test_split_and_concatenate(mode=MODES[0]):
    def run(reversible):
        blocks = [
            layers.ReversibleParallel([coupling(4)]),
            layers.ReversibleSplit(0.25),
            layers.ReversibleParallel(
                [layers.InvertibleDownsampling2D(2), None]
            ),
            layers.ReversibleParallel([coupling(4), None]),
            layers.ReversibleSplit(3),
            layers.ReversibleConcatenate(),
            layers.ReversibleParallel([layers.InvertibleUpsampling2D(2), None]),
            layers.ReversibleConcatenate(),
        ]
        return layers.ReversibleSequence(blocks, reversible)

    results = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        inputs = keras.Input((4, 4, 8))
        (y,) = run(reversible)([inputs])
        model = keras.Model(inputs, y)
        assert model.output_shape == (None, 4, 4, 8)
        results.append(gradients(model, [batch(2, 4, 4, 8)], mode))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4
    x = batch(2, 4, 4, 8)
    layer = layers.ReversibleSplit(0.25)
    a, b, c = to_numpy(layer([x, x]))
    np.testing.assert_array_equal(a, x[..., :2])
    np.testing.assert_array_equal(b, x[..., 2:])
    np.testing.assert_array_equal(c, x)
    (y,) = to_numpy(layers.ReversibleConcatenate()([a, b]))
    np.testing.assert_array_equal(y, x)
    for found in to_numpy(layer.inverse([a, b, c])):
        np.testing.assert_array_equal(found, x)


def test_split_and_concatenate_are_exact_on_integers():
    blocks = [
        layers.ReversibleSplit(2),
        layers.ReversibleParallel([coupling(1), coupling(3)]),
        layers.ReversibleConcatenate(),
    ]
    run = layers.ReversibleSequence(blocks, exact=True)
    x = np.round(batch(2, 4, 4, 8) * 2**10) / 2**10
    np.testing.assert_array_equal(*to_numpy([run.inverse(run([x]))[0]]), x)


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("parametrization", ["cayley", "householder"])
def test_orthogonal_mixing(parametrization, size):
    x = batch(3, 2, size)
    first = layers.OrthogonalMixing(parametrization)
    np.testing.assert_allclose(*to_numpy([first(x)]), x, atol=1e-5)
    mixing = layers.OrthogonalMixing(
        parametrization, kernel_initializer="random_normal"
    )
    y = mixing(x)
    (kernel,) = to_numpy([mixing.kernel])
    kernel = kernel.astype("float64")
    eye = np.eye(size)
    if parametrization == "cayley":
        a = kernel - kernel.T
        u = np.linalg.inv(eye + a) @ (eye - a)
    else:
        u = eye
        for v in kernel:
            u = u @ (eye - 2 * np.outer(v, v) / (v @ v))
    np.testing.assert_allclose(*to_numpy([y]), x @ u, atol=1e-5)
    np.testing.assert_allclose(*to_numpy([mixing.inverse(y)]), x, atol=1e-5)
    turned = layers.OrthogonalMixing(parametrization, 1)
    turned.build((3, size, 2))
    turned.kernel.assign(kernel)
    found = to_numpy([turned(x.transpose(0, 2, 1))])[0]
    np.testing.assert_allclose(found.transpose(0, 2, 1), x @ u, atol=1e-5)


@pytest.mark.parametrize("parametrization", ["cayley", "householder"])
def test_learned_resampling_starts_from_a_haar_transform(parametrization):
    x = batch(2, 4, 4, 3)
    haar = layers.InvertibleDownsampling2D(2)
    learned = layers.InvertibleDownsampling2D(
        2, "orthogonal", parametrization=parametrization, start="haar"
    )
    np.testing.assert_allclose(*to_numpy([learned(x), haar(x)]), atol=1e-5)
    u = to_numpy([orthogonal(learned.kernel, parametrization)])[0]
    np.testing.assert_allclose(u, np.tile(np.eye(4), (3, 1, 1)), atol=1e-5)
    other = layers.InvertibleDownsampling2D(
        2,
        "orthogonal",
        parametrization=parametrization,
        start="haar",
        kernel_initializer="random_normal",
    )
    y = other(x)
    assert np.max(np.abs(to_numpy([y - haar(x)])[0])) > 0.01
    np.testing.assert_allclose(*to_numpy([other.inverse(y)]), x, atol=1e-5)


def test_what_cannot_be_a_block_is_refused():
    with pytest.raises(TypeError, match="have a method `inverse`"):
        layers.ReversibleSequence([keras_layers.Dense(4)])
    with pytest.raises(ValueError, match="Use `padding='valid'` in a run"):
        layers.ReversibleSequence(
            [layers.InvertibleDownsampling2D(2, padding="same")]
        )
    with pytest.raises(ValueError, match="Build it with `dtype='float32'`"):
        layers.ReversibleSequence([layers.OrthogonalMixing(dtype="bfloat16")])
    with pytest.raises(ValueError, match="integers are added exactly"):
        layers.ReversibleSequence([layers.OrthogonalMixing()], exact=True)
    with pytest.raises(ValueError, match="none must be empty"):
        layers.ReversibleSplit(8)([batch(2, 8)])
    with pytest.raises(ValueError, match="takes a list of streams"):
        layers.ReversibleSplit(3)(batch(2, 8))
    with pytest.raises(ValueError, match="`parametrization` must be one of"):
        layers.OrthogonalMixing("lu")
    with pytest.raises(ValueError, match="`start` must be one of"):
        layers.InvertibleDownsampling1D(start="zeros")
    assert ops.is_tensor(layers.OrthogonalMixing()(batch(2, 3)))
