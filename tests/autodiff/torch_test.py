"""What PyTorch alone does: autocast, compilation, data parallelism."""

import random
import threading

import keras
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.twins import batch
from tests.twins import noise

if keras.config.backend() != "torch":
    pytest.skip("Is about PyTorch.", allow_module_level=True)

import torch  # noqa: E402


def function():
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(64, "gelu"),
            layers.Dropout(0.2),
            layers.Dense(8),
        ]
    )


def run(reversible=True):
    keras.utils.set_random_seed(1)
    blocks = [AdditiveCoupling(function(), function()) for _ in range(4)]
    layer = ReversibleSequence(blocks, reversible)
    layer.build((None, 16))
    return layer


def recompute(on=True):
    keras.utils.set_random_seed(1)
    functions = [function() for _ in range(4)]
    layer = Recompute(functions) if on else keras.Sequential(functions)
    layer(batch(2, 16))
    return layer


@pytest.mark.parametrize("backward_inside", [True, False])
@pytest.mark.parametrize("kind", [run, recompute])
def test_pitfall_10_autocast_around_it(kind, backward_inside):
    """Its cache of cast weights must not cost a parameter its gradient."""
    found, x = [], torch.tensor(batch(64, 16))
    for layer in (kind(), kind(False)):
        keras.utils.set_random_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            # The weights are cast here too, and this cast is cached.
            extra = sum(v.value.mean() for v in layer.trainable_variables)
            loss = (layer(x, training=True) ** 2).sum() + 0 * extra
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        found.append([v.value.grad for v in layer.trainable_variables])
    for ours, theirs in zip(*found):
        assert ours is not None and torch.any(ours != 0)
        error = torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)
        assert error < 1e-3  # of bfloat16 it would be 1e-2 if one side were not


def test_pitfall_10_autocast_and_a_layer_that_is_used_outside_as_well():
    """The run must not leave casts without a graph in the cache."""
    found, x = [], torch.tensor(batch(64, 16))
    for reversible in (True, False):
        keras.utils.set_random_seed(1)
        dense = layers.Dense(8)
        layer = ReversibleSequence([AdditiveCoupling(dense)], reversible)
        with torch.autocast("cpu", torch.bfloat16):
            loss = (layer(x)[:, 8:] * dense(x[:, :8])).sum()
        loss.backward()
        found.append(dense.kernel.value.grad)
    error = torch.linalg.norm(found[0] - found[1])
    assert error < 1e-2 * torch.linalg.norm(found[1])


def test_pitfall_10_autocast_casts_in_the_recomputation_too():
    seen = []

    class Spy(layers.Layer):
        def call(self, x):
            if not isinstance(x, keras.KerasTensor):
                seen.append((x @ x.T).dtype)
            return x

    layer = ReversibleSequence([AdditiveCoupling(Spy())] * 2)
    x = torch.tensor(batch(4, 8), requires_grad=True)
    layer(x)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).sum()
    loss.backward()
    assert seen == [torch.bfloat16] * 4
    seen.clear()
    loss = layer(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    assert seen == [torch.float32] * 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [run, recompute])
def test_pitfall_20_torch_compile(kind):
    x = torch.tensor(batch(4096, 16))  # of one shape: it is compiled once

    def bytes_saved(call):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            call(x, training=True)
        return total

    def gradients(layer, call):
        keras.utils.set_random_seed(5)
        variables = [v.value for v in layer.trainable_variables]
        loss = (call(x, training=True) ** 2).sum()
        return torch.autograd.grad(loss, variables)

    layer, plain = kind(), kind(False)
    compiled = torch.compile(layer)
    found = gradients(layer, compiled), gradients(plain, plain)
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    kept = [bytes_saved(f) for f in (compiled, layer, torch.compile(plain))]
    assert kept[0] <= 1.01 * kept[1] < 0.4 * kept[2]


@pytest.mark.slow
def test_pitfall_20_distributed_data_parallel(tmp_path):
    """Its hooks want each parameter's gradient exactly once."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        layer = run()
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        x = torch.tensor(batch(64, 16))
        found = []
        for call in (parallel, layer):
            keras.utils.set_random_seed(5)
            for v in layer.trainable_variables:
                v.value.grad = None
            (call(x, training=True) ** 2).sum().backward()
            found.append([v.value.grad for v in layer.trainable_variables])
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", [Recompute, ReversibleSequence])
def test_backward_pass_of_another_thread_draws_the_same(kind):
    """PyTorch runs that of a GPU in a thread of its own.

    There Keras has another generator for what is drawn without a seed.
    """
    found = []
    for in_thread in (True, False):
        keras.utils.set_random_seed(1)
        functions = [function(), layers.Lambda(noise), function()]
        if kind is ReversibleSequence:
            functions = [AdditiveCoupling(f, function()) for f in functions]
        layer = kind(functions)
        width = 16 if kind is ReversibleSequence else 8
        x = ops.convert_to_tensor(batch(4, width))
        layer.build(x.shape)
        for _ in range(2):
            loss = ops.sum(layer(x, training=True) ** 2)
            state = random.getstate()
            if in_thread:
                thread = threading.Thread(target=loss.backward)
                thread.start()
                thread.join()
            else:
                loss.backward()
            assert random.getstate() == state
        found.append([v.value.grad for v in layer.trainable_variables])
    for ours, theirs in zip(*found):
        assert torch.any(ours != 0) and torch.equal(ours, theirs)
