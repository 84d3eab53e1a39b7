"""Gradients that are gone when used: on PyTorch, by hooks."""

import weakref

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import chunk_loss
from keras_efficient import layers as our_layers
from keras_efficient import micro_batches
from keras_efficient import optimizers
from keras_efficient import release_gradients
from tests.gradients import to_numpy

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="XLA does it by itself"
)
X = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")
Y = np.arange(8) % 5


def network(width=16, depth=3, reversible=False):
    """With a layer that is used twice, and one that gets no gradient."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    shared = layers.Dense(width, "tanh", kernel_constraint="max_norm")
    x = shared(shared(layers.Dense(width)(inputs)))
    if reversible:
        blocks = [
            our_layers.AdditiveCoupling(layers.Dense(width // 2, "tanh"))
            for _ in range(depth)
        ]
        x = our_layers.ReversibleSequence(blocks)(x)
    else:
        for _ in range(depth):
            x = layers.Dense(width, "tanh")(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def trained(model, optimizer):
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = model.fit(X, Y, 4, epochs=2, shuffle=False, verbose=0).history
    return losses["loss"], to_numpy([*model.variables, *optimizer.variables])


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5),
        weight_decay=0.1,
        clipnorm=0.01,
    ),
    "Adam8bit": lambda: optimizers.Adam8bit(0.01, min_size=64),
    "MicroAdam": lambda: optimizers.MicroAdam(0.01, min_size=64),
    "SinkGD": lambda: optimizers.SinkGD(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_plain_training(name):
    results = []
    for release in (True, False):
        model = network(reversible=name == "SGD")
        assert release_gradients(model, release) is model
        if name == "Adam":
            chunk_loss(model)
        results.append(trained(model, OPTIMIZERS[name]()))
        assert int(model.optimizer.iterations.numpy()) == 4
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reversible", [False, True])
def test_gradients_never_exist_together(reversible):
    for release in (True, False):
        model = network(128, 24 if reversible else 8, reversible)
        release_gradients(model, release)
        trained(model, keras.optimizers.SGD(0.1))  # builds the optimizer
        variables, counts, gradients = model.trainable_variables, [], []

        def count(tensor):
            gradients.append(weakref.ref(tensor.grad))
            alive = [d() for d in gradients]
            counts.append(sum(d.numel() for d in alive if d is not None))

        handles = [
            v.value.register_post_accumulate_grad_hook(count) for v in variables
        ]
        model.fit(X, Y, 8, verbose=0)
        for handle in handles:
            handle.remove()
        sizes = [np.prod(v.shape) for v in variables]
        if release:  # one that has come, and those that wait
            assert max(counts) <= 2 * max(sizes) < 0.4 * sum(sizes)
        else:
            assert max(counts) == sum(sizes)


def test_small_gradients_are_used_together():
    """A call of the optimizer takes longer than a small update."""
    model = release_gradients(network(16, 20))
    optimizer = keras.optimizers.SGD(0.1)
    trained(model, optimizer)
    calls, apply = [], type(optimizer).apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keras.optimizers.SGD,
            "apply",
            lambda self, gradients, variables: (
                calls.append(len(variables)),
                apply(self, gradients, variables),
            ),
        )
        model.fit(X, Y, 8, verbose=0)
    variables = model.trainable_variables
    kernels = [v for v in variables if v.name == "kernel"]
    assert sum(calls) == len(variables)
    # Each kernel but the last by itself; biases wait for each other.
    assert len(kernels) - 1 <= len(calls) <= len(kernels) + 3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"optimizer": keras.optimizers.SGD(global_clipnorm=1.0)}, "norm"),
        (
            {"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)},
            "accumulation",
        ),
        ({"optimizer": keras.optimizers.SGD(use_ema=True)}, "ema"),
        ({"optimizer": keras.optimizers.Nadam()}, "Nadam"),
        (
            {
                "optimizer": keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD()
                )
            },
            "LossScale",
        ),
        ({"optimizer": "sgd", "jit_compile": True}, "jit_compile"),
    ],
)
def test_what_cannot_be_right_is_refused(change, words):
    model = release_gradients(network())
    before = to_numpy(model.variables)
    model.compile(loss="mse", **change)
    with pytest.raises(ValueError, match=words):
        model.fit(X, X[:, :5], verbose=0)
    for a, b in zip(to_numpy(model.variables), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_can_be_undone_and_parts_are_refused():
    model = release_gradients(micro_batches(network(), 2))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="micro_batches"):
        model.fit(X, X[:, :5], verbose=0)
    micro_batches(model, 1).fit(X, X[:, :5], verbose=0)
    release_gradients(model, False)
    assert "train_step" not in vars(model)
    assert "apply" not in vars(model.optimizer)
    with pytest.raises(TypeError, match="keras.Model"):
        release_gradients(layers.Dense(2))
