"""What a call reads and writes besides its arguments, wherever it is run."""

import keras
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import ExactDense
from tests.twins import batch
from tests.twins import relative_errors

BACKEND = keras.config.backend()
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="Is about PyTorch.")


class Own(layers.Layer):
    """A layer whose `call` is a function, with what it reads out of sight."""

    def __init__(self, fn, parts=()):
        super().__init__()
        self.fn = fn
        self.parts = list(parts)
        self.built = True

    def call(self, x):
        return self.fn(x)


def lora():
    dense = layers.Dense(4)
    dense.build((None, 4))
    block = Own(lambda x: dense(x), [dense])
    block.trainable = False
    dense.trainable = True
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(ops.ones((2, 4)))
    return block, []


def tied():
    dense = layers.Dense(4, use_bias=False)
    dense.build((None, 4))
    return Own(lambda x: ops.tanh(x @ ops.transpose(dense.kernel))), [dense]


def metric():
    mean = keras.metrics.Mean()

    def fn(x):
        mean.update_state(ops.mean(x))
        return ops.tanh(x)

    return Own(fn, [mean]), []


def moving_average():
    """Is written, and read in the same call."""
    holder = layers.Layer()
    mean = holder.add_weight(shape=(4,), trainable=False, name="mean")
    holder.built = True

    def fn(x):
        mean.assign(0.5 * mean + 0.5 * ops.mean(x, axis=0))
        return ops.tanh(x - mean)

    return Own(fn, [holder]), []


CASES = {"lora": lora, "tied": tied, "metric": metric, "ema": moving_average}


def wrap(kind, layer, lean):
    if kind == "recompute":
        return Recompute(layer) if lean else layer
    blocks = [AdditiveCoupling(layer), AdditiveCoupling(layer)]
    run = ReversibleSequence(blocks, lean)
    return lambda x: ops.concatenate(run([ops.sin(x), x]), axis=-1)


class Model(keras.Model):
    def __init__(self, kind, case, lean):
        super().__init__()
        layer, self.others = case()
        self.inner = layer
        self.wrapped = wrap(kind, layer, lean)

    def call(self, x, training=None):
        return self.wrapped(x) + sum(ops.sum(d(x)) for d in self.others)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["recompute", "run"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reads_and_writes_what_the_plain_layer_does(case, kind, mode):
    found, x = [], batch(5, 4)
    for lean in (True, False):
        keras.utils.set_random_seed(3)
        model = Model(kind, case, lean)
        model(ops.convert_to_tensor(x))
        for _ in range(2):
            parts = gradients(model, [x], mode)
        found.append((*parts, to_numpy(model.variables)))
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs), default=0) < 1e-5


@on_torch
@pytest.mark.parametrize("kind", ["recompute", "run"])
def test_modules_parameters_and_tensors_of_torch(kind):
    import torch

    found = []
    for lean in (True, False):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 4, bias=False), torch.nn.BatchNorm1d(4)
        )
        p = torch.nn.Parameter(torch.ones(4))
        x = torch.tensor(batch(6, 4), requires_grad=True)
        closed_over = torch.sin(x)
        wrapper = layers.TorchModuleWrapper(module)
        layer = Own(lambda y: wrapper(y) * p + closed_over, [wrapper])
        y = wrap(kind, layer, lean)(torch.cos(x))
        leaves = [x, p, *module.parameters()]
        d = torch.autograd.grad((y**2).sum(), leaves)
        found.append([*d, *module.buffers()])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(torch.any(d != 0) for d in found[0][:3])


@on_torch
def test_gradients_are_handed_out_block_by_block():
    import torch

    blocks = [AdditiveCoupling(layers.Dense(4, "tanh")) for _ in range(3)]
    run, seen, evaluated = ReversibleSequence(blocks), [], []
    run.build((None, 8))
    for i, block in enumerate(blocks):
        block.f.kernel.value.register_hook(lambda d, i=i: seen.append(i))
        call = block.f.call
        vars(block.f)["call"] = lambda x, call=call, i=i, **_: (
            evaluated.append((i, list(seen))) or call(x)
        )
    loss = (run(torch.tensor(batch(2, 8))) ** 2).sum()
    evaluated.clear()
    loss.backward()
    assert seen == [2, 1, 0]
    # A block is reconstructed after the hooks of the one behind it.
    assert evaluated == [(2, []), (1, [2]), (0, [2, 1])]


@on_torch
def test_transforms_of_torch_func_say_what_to_do():
    import torch

    run = ReversibleSequence([AdditiveCoupling(layers.Dense(4))])
    run.build((None, 8))
    x = torch.tensor(batch(2, 8))
    with pytest.raises(NotImplementedError, match="`reversible=False`"):
        torch.func.grad(lambda x: run(x).sum())(x)
    run.reversible = False
    assert torch.func.grad(lambda x: run(x).sum())(x).shape == x.shape


@on_torch
def test_an_input_that_is_written_into_is_refused():
    with pytest.raises(ValueError, match="writes into its input in place"):
        Recompute(Own(lambda x: x.mul_(2)))(batch(2, 4))


@pytest.mark.skipif(BACKEND != "jax", reason="JAX has the loop.")
def test_a_loop_refuses_what_is_not_the_own_of_a_block():
    dense = layers.Dense(4, use_bias=False)
    dense.build((None, 4))

    def block():
        f = layers.Lambda(lambda x: x @ dense.kernel, output_shape=(4,))
        return AdditiveCoupling(f)

    run = ReversibleSequence([block(), block()], scan=True)
    with pytest.raises(ValueError, match="scan=True.*which is none of them"):
        run(batch(2, 8))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_and_bytes_of_an_inverse(mode, float64):

    x = batch(5, 8, dtype="float64")

    def build(reversible):
        keras.utils.set_random_seed(3)
        blocks = [AdditiveCoupling(ExactDense(4), ExactDense(4))] * 2
        run = ReversibleSequence(
            [*blocks, AdditiveCoupling(ExactDense(4))], reversible
        )

        class Inverted(keras.Model):
            def __init__(self):
                super().__init__()
                self.run = run

            def call(self, x, training=None):
                return self.run.inverse(x)

        run.build((None, 8))
        model = Inverted()
        model(ops.convert_to_tensor(x))
        return model

    found = [gradients(build(reversible), [x], mode) for reversible in (1, 0)]
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs)) < 1e-11
