"""Random numbers: the recomputation draws what the forward pass drew."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import ENDS
from tests.gradients import GRAPH
from tests.gradients import LAST
from tests.gradients import gradient_step
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import relative_errors

BACKEND = keras.config.backend()


def noisy(seed):
    return keras.Sequential(
        [
            layers.Dense(16, "tanh"),
            layers.Dropout(0.5, seed=seed),
            layers.Dense(16),
            layers.GaussianNoise(0.3, seed=seed),
            layers.Dropout(0.5, seed=seed),
            layers.Dense(4),
            layers.GaussianDropout(0.3, seed=seed),
        ]
    )


def wrap(kind, sub_layers):
    if kind == "recompute":
        return Recompute(sub_layers)
    return ReversibleSequence([AdditiveCoupling(f, f) for f in sub_layers])


def plain(kind, sub_layers):
    if kind == "recompute":
        return keras.Sequential(sub_layers)
    run = wrap(kind, sub_layers)
    run.reversible = False
    return run


@pytest.mark.parametrize(
    "kind, mode", [*(("run", mode) for mode in ENDS), ("recompute", GRAPH)]
)
def test_pitfall_04_masks_are_drawn_again(kind, mode):
    models = []
    for build in (wrap, plain):
        keras.utils.set_random_seed(7)
        inputs = keras.Input((8,))
        layer = build(kind, [noisy(None), noisy(3)])
        models.append(keras.Model(inputs, layer(inputs)))
    x, steps = batch(32, 8), []
    for model in models:
        keras.utils.set_random_seed(1)
        step = gradient_step(model, mode)
        steps.append([step([x]) for _ in range(3)])
    for ours, theirs in zip(*steps):
        for a, b in zip(ours, theirs):
            assert max(relative_errors(a, b)) < 1e-4
    outputs = [step[0][0] for step in steps[0]]
    assert np.any(outputs[0] != outputs[1]), "two steps drew the same"
    states = [to_numpy(m.non_trainable_variables) for m in models]
    for a, b in zip(*states):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(BACKEND != "torch", reason="Its generator is global.")
@pytest.mark.parametrize("kind", ["run", "recompute"])
def test_pitfall_04_the_global_generator_goes_on_as_without_recomputation(kind):
    import torch

    drawn = []
    for build in (wrap, plain):
        keras.utils.set_random_seed(7)
        layer = build(kind, [noisy(None)])
        y = layer(batch(32, 8), training=True)
        first = torch.rand(3)
        ops.sum(y).backward()
        drawn.append(torch.cat([first, torch.rand(3)]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["run", "recompute"])
def test_pitfall_06_a_layer_called_twice_before_the_backward_pass(kind):
    """As in gradient accumulation and siamese networks."""
    results = []
    for build in (wrap, plain):
        keras.utils.set_random_seed(7)
        layer = build(kind, [noisy(3), layers.BatchNormalization()])
        inputs = [keras.Input((8 if kind == "run" else 4,)) for _ in range(2)]
        model = keras.Model(inputs, [layer(x) for x in inputs])
        keras.utils.set_random_seed(1)
        x = batch(32, *inputs[0].shape[1:])
        mode = LAST if kind == "run" else GRAPH
        results.append(gradients(model, [x, 2 - x], mode))
        results[-1] += (to_numpy(model.non_trainable_variables),)
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4


@pytest.mark.parametrize("kind", ["run", "recompute"])
def test_pitfall_17_training_reaches_layers_that_have_no_name_for_it(kind):
    class Silent(layers.Layer):
        """Keras hands `training` on to its Dropout, past its `call`."""

        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, "tanh")
            self.dropout = layers.Dropout(0.5, seed=3)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(self.dropout(x))

    results = []
    for build in (wrap, plain):
        keras.utils.set_random_seed(7)
        layer = build(kind, [Silent(), Silent()])
        inputs = keras.Input((8 if kind == "run" else 4,))
        model = keras.Model(inputs, layer(inputs))
        x = batch(32, *inputs.shape[1:])
        results.append(gradients(model, [x]))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4


def test_pitfall_04_a_sub_layer_that_draws_nothing_keeps_no_state():
    from keras_efficient import backend

    _, state = backend.record_random(lambda: ops.ones(3))
    assert state is None
