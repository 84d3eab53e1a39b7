"""Blocks that learn each by itself: the chain, gradients, bytes kept."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient.models import NoProp
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import GRAPH
from tests.gradients import fit_mode
from tests.marks import once

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = X[:, :3].argmax(-1)


def block(width=8, norm=False):
    x, z = keras.Input((4,)), keras.Input((3,))
    y = keras.layers.Concatenate()([x, z])
    y = keras.layers.Dense(width, "relu")(y)
    if norm:
        y = keras.layers.BatchNormalization()(y)
    return keras.Model([x, z], keras.layers.Dense(3)(y))


def network(steps=3, width=8, norm=False, **settings):
    blocks = [block(width, norm) for _ in range(steps)]
    return NoProp(blocks, 3, seed=1, **settings)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Knows(keras.layers.Layer):
    """A block that knows the class: the first input."""

    def call(self, inputs):
        return 1000.0 * ops.one_hot(ops.cast(inputs[0][:, 0], "int32"), 3)


@once
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_with_the_right_answer_the_chain_is_the_posterior(steps):
    """Each z_t has the mean and variance that block t+1 was trained on."""
    model = NoProp([Knows() for _ in range(steps)], 3, seed=0)
    n = 20000
    x = np.tile([[1.0]], (n, 1)).astype("float32")
    model.build(x.shape)
    vars(model.out)["call"] = lambda z: z
    z = np.array(ops.convert_to_numpy(model.call(ops.convert_to_tensor(x))))
    level = np.cos(np.pi / 2 * (1 - steps / (steps + 1))) ** 2
    expected = np.sqrt(level) * np.eye(3)[1]
    deviation = np.sqrt(1 - level)
    error = 4 * deviation / np.sqrt(n)
    np.testing.assert_allclose(z.mean(0), expected, atol=error)
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.03)


def local_gradients(model, weights):
    """Gradients of the losses of blocks, weighted, for all variables."""
    variables = model.trainable_variables
    x, y = ops.convert_to_tensor(X), ops.convert_to_tensor(Y)

    def loss(values):
        with keras.StatelessScope(zip(variables, values)):
            u = ops.take(model.embeddings, y, axis=0)
            total = 0.0
            for t, (run, weight) in enumerate(zip(model._runs, weights), 1):
                found = model._denoised(run, x, model._noisy(u, t - 1), True)
                total = total + weight * ops.sum(ops.square(found - u))
        return total

    value, pullback = backend.vjp(loss, [v.value for v in variables])
    (gradient,) = pullback(ops.ones_like(value))
    return {id(v): ops.convert_to_numpy(g) for v, g in zip(variables, gradient)}


@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_of_one_block_for_another_are_exactly_zero(recompute):
    model = network(recompute=recompute)
    model.build(X.shape)
    for chosen in range(3):
        found = local_gradients(model, np.eye(3)[chosen])
        for i, part in enumerate(model.blocks):
            size = max(
                np.abs(found[id(v)]).max() for v in part.trainable_variables
            )
            assert (size == 0) == (i != chosen)


def test_it_learns(tmp_path, own_compile):
    model = network(norm=True)
    model.compile(
        keras.optimizers.Adam(0.02), metrics=["accuracy"], **fit_mode(GRAPH)
    )
    logs = model.fit(
        *(X, Y, 16), epochs=40, verbose=0, validation_data=(X, Y)
    ).history
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert "accuracy" not in logs
    assert logs["val_accuracy"][-1] > 0.7
    norm = model.blocks[0].layers[-2]
    assert np.abs(norm.get_weights()[2]).max() > 0.01  # its mean moves
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.evaluate(X, Y, verbose=0)[1] > 0.7


def test_it_trains_in_sixteen_bits():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(embedding_dim=3)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam", metrics=["accuracy"])
    losses = model.fit(X, Y, 16, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert np.isfinite(model.evaluate(X, Y, verbose=0)).all()


def test_both_ways_to_keep_take_the_same_step():
    weights = []
    for recompute in (True, False):
        keras.utils.set_random_seed(3)
        model = network(norm=True, recompute=recompute)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
        weights.append([v.copy() for v in model.get_weights()])
    for a, b in zip(*weights, strict=True):
        if a.dtype == "float32":
            np.testing.assert_allclose(a, b, atol=1e-5)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class LossOf(keras.layers.Layer):
    """The training loss of a model, as a layer of the inputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x, training=False):
        return self.model.compute_loss(x, Y[: x.shape[0]], training=True)


class Chain(LossOf):
    """The control: the same blocks, trained by back-propagation."""

    def call(self, x, training=False):
        z = ops.zeros_like(x[:, :3])
        for run in self.model._runs:
            z = self.model._denoised(run, x, z, True)
        return self.model.out(z)


def test_bytes_kept_are_flat_in_depth():
    def growth(layer, **settings):
        """From two blocks to eight."""
        kept = []
        for steps in (2, 8):
            model = network(steps, width=512, **settings)
            model.compile("sgd")
            model.build(X.shape)
            kept.append(saved_activation_bytes(layer(model), X))
        return kept[1] - kept[0]

    grown = growth(Chain, recompute=False)
    assert grown > 6 * 0.9 * (64 * 512 * 4)  # a map of each block, at least
    assert growth(LossOf) < 0.2 * grown


@once
def test_weights_of_samples_and_bad_arguments():
    model = network()
    model.compile("sgd")
    model.build(X.shape)
    y_pred = ops.convert_to_tensor(RNG.normal(size=(64, 3)).astype("float32"))
    each = [
        float(model.compute_loss(X, Y, y_pred, w, training=False))
        for w in (None, np.ones(64), np.arange(64) % 2)
    ]
    assert each[0] == each[1] > each[2] > 0
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="losses of its own"):
        model.fit(X, Y, verbose=0)
    for settings in ({"eta": 0}, {"embedding_dim": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            network(**settings)
    with pytest.raises(ValueError, match="num_classes"):
        NoProp([block()], 1)
    with pytest.raises(ValueError, match="blocks"):
        NoProp([], 3)
