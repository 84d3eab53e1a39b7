"""What a recomputed call reads and writes, whoever owns it."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import relative_errors

BACKEND = keras.config.backend()
needs_torch = pytest.mark.skipif(BACKEND != "torch", reason="About PyTorch.")


def compare(build, *inputs):
    """Check gradients and state against those of the plain layers."""
    found = []
    for wrap in (Recompute, keras.Sequential):
        keras.utils.set_random_seed(7)
        model = build(wrap)
        parts = gradients(model, inputs)
        found.append((*parts, to_numpy(model.non_trainable_variables)))
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs), default=0) < 1e-5
    return found[0]


class Function(layers.Layer):
    """What it reads and writes, Keras does not know."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.built = self.supports_masking = True

    def call(self, x):
        return self.fn(x)


class Clipped(layers.Layer):
    """Writes its weight, and reads it before and after.

    (In sums, which keep nothing: PyTorch refuses what was overwritten.)
    """

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, x):
        y = x * (self.w + 0)
        self.w.assign(ops.clip(self.w, -0.5, 0.5))
        self.calls.assign(self.calls + 1)
        return ops.tanh(y + self.w + self.calls)


def test_weights_of_other_layers_and_weights_that_are_written():
    def build(wrap):
        dense, clipped = layers.Dense(4), Clipped()
        tied = Function(lambda x: ops.matmul(x, ops.transpose(dense.kernel)))
        inputs = keras.Input((8,))
        x = wrap([clipped, layers.Activation("tanh"), clipped])(inputs)
        x = wrap([tied, clipped])(dense(x))
        return keras.Model(inputs, x)

    _, _, d_params, (calls,) = compare(build, batch(3, 8))
    assert calls == 3 and all(np.any(d != 0) for d in d_params)


class Masked(layers.Layer):
    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x, mask=None):
        if mask is None:  # when it is built
            return x
        return ops.tanh(x) * ops.cast(mask, x.dtype)[..., None]


def test_masks_reach_layers_inside_and_outside():
    def build(wrap):
        inputs = keras.Input((4, 8))
        x = wrap([layers.Masking(), layers.Activation("tanh")])(inputs)
        x = wrap([Function(lambda x: x + 1), Masked()])(Masked()(x))
        return keras.Model(inputs, wrap([Masked()])(x))

    x = batch(2, 4, 8)
    x[:, 2] = 0
    compare(build, x)


def test_a_mask_reaches_what_a_sub_layer_calls():
    inner = Masked()
    masked = Function(inner)
    run = ReversibleSequence([AdditiveCoupling(masked)])
    inputs = keras.Input((4, 8))
    model = keras.Model(inputs, run(layers.Masking()(inputs)))
    x = batch(2, 4, 8)
    x[:, 2] = 0
    (y,), (d_x,), _ = gradients(model, [x])
    kept = (np.arange(4) != 2)[:, None]
    x1, x2 = np.split(x, 2, -1)
    np.testing.assert_allclose(y[..., 4:], x1 + kept * np.tanh(x2), atol=1e-6)
    slope = kept * (1 - np.tanh(x2) ** 2)
    expected = 2 * x2 + 2 * y[..., 4:] * slope
    np.testing.assert_allclose(d_x[..., 4:], expected, atol=1e-5)


def test_a_call_has_the_signature_of_the_layer():
    attention = layers.MultiHeadAttention(2, 4)
    found = inspect.signature(Recompute(attention).call).parameters
    wanted = inspect.signature(attention.call).parameters
    assert list(found) == list(wanted)
    given = Recompute(attention, {"use_causal_mask": True}).call
    found = inspect.signature(given).parameters["use_causal_mask"]
    assert found.default is True
    found = inspect.signature(Recompute(Masked()).call).parameters
    assert {"x", "mask", "training"} == set(found)


@needs_torch
def test_modules_and_tensors_that_are_closed_over_on_torch():
    import torch

    linear = torch.nn.Linear(8, 8)
    scale = torch.ones(8, requires_grad=True)
    sources, found = [*linear.parameters(), scale], []
    function = Function(lambda x: torch.tanh(linear(x)) * doubled)
    for layer in (Recompute(function), function):
        doubled = 2 * scale
        y = layer(torch.tensor(batch(3, 8)))
        found.append(torch.autograd.grad((y**2).sum(), sources))
    for ours, theirs in zip(*found):
        assert torch.any(ours != 0)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Its tape knows of it.")
def test_what_a_block_reads_outside_of_sub_layers_is_refused():
    class Scaled(AdditiveCoupling):
        def couple(self, streams, evaluate):
            x1, x2 = super().couple(streams, evaluate)
            return x1, x2 * self.scale[0]

    block = Scaled(layers.Dense(4))
    vars(block)["scale"] = [1.0]
    run = ReversibleSequence([block])
    run.build((None, 8))

    def total(scale):
        vars(block)["scale"] = [scale]
        return ops.sum(run(batch(2, 8)) ** 2)

    with pytest.raises(ValueError, match="neither an argument nor a variable"):
        if BACKEND == "jax":
            import jax

            jax.grad(total)(np.ones(4, "float32"))
        else:
            total(ops.ones(4).requires_grad_())


@pytest.mark.skipif(BACKEND != "jax", reason="JAX has the loop.")
def test_a_loop_refuses_what_its_blocks_do_not_have():
    dense = layers.Dense(4)
    dense.build((None, 4))

    class Tied(layers.Layer):
        def call(self, x):
            return ops.matmul(x, dense.kernel)

    blocks = [AdditiveCoupling(Tied()) for _ in range(2)]
    run = ReversibleSequence(blocks, scan=True)
    with pytest.raises(ValueError, match="which is none of them"):
        run(batch(2, 8))
