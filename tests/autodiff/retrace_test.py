"""Python runs once a trace: nothing is traced or compiled again."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import AffineCoupling
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import MODES
from tests.gradients import gradients
from tests.twins import Rotation
from tests.twins import batch
from tests.twins import function

BACKEND = keras.config.backend()


class Counting(layers.Layer):
    """Counts how often Python runs it."""

    def __init__(self, width=4):
        super().__init__()
        self.width = width
        self.count = 0

    def call(self, x):
        self.count += 1
        return ops.tanh(ops.concatenate([x, x], -1)[..., : self.width])


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not trace.")
@pytest.mark.parametrize(
    "jit_compile, steps_per_execution",
    [(True, 1), (BACKEND == "jax", 3)],
)
def test_pitfall_22_no_retrace_after_the_first_step(
    jit_compile, steps_per_execution
):
    counting = Counting()
    blocks = [AdditiveCoupling(counting), AdditiveCoupling(function(3))]
    inputs = keras.Input((8,))
    x = ReversibleSequence(blocks)(inputs)
    recomputed = Counting(8)
    outputs = layers.Dense(3)(Recompute([recomputed])(x))
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd",
        "mse",
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
        run_eagerly=False,
    )
    x = batch(48, 8)
    model.fit(x, x[:, :3], 8, verbose=0)
    counted = counting.count, recomputed.count
    model.fit(x, x[:, :3], 8, epochs=3, verbose=0)
    assert (counting.count, recomputed.count) == counted


@pytest.mark.skipif(BACKEND != "jax", reason="Asks the compiler of JAX.")
def test_pitfall_22_no_recompilation_after_the_first_step():
    import jax

    compiled = []

    def listen(name, *args, **kwargs):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    inputs = keras.Input((8,))
    run = ReversibleSequence([AdditiveCoupling(function(3)) for _ in range(2)])
    model = keras.Model(inputs, layers.Dense(3)(run(inputs)))
    model.compile("sgd", "mse")
    x = batch(48, 8)
    jax.monitoring.register_event_duration_secs_listener(listen)
    model.fit(x, x[:, :3], 8, verbose=0)
    assert compiled
    compiled.clear()
    model.fit(x, x[:, :3], 8, verbose=0)
    assert not compiled


BLOCKS = {
    "additive": lambda: (AdditiveCoupling, [4, 4]),
    "half step": lambda: (AdditiveCoupling, [4]),
    "affine": lambda: (AffineCoupling, [8, 8]),
    "momentum": lambda: (MomentumCoupling, [4]),
    "own": lambda: (Rotation, [4]),
}


@pytest.mark.skipif(BACKEND == "jax", reason="JAX traces more often.")
@pytest.mark.parametrize("mode", MODES[:2])  # XLA traces as a graph does
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_pitfall_23_each_sub_layer_is_evaluated_twice_a_step(block, mode):
    coupling, widths = block()
    sub_layers = [Counting(width) for width in widths]
    inputs = keras.Input((8,))
    run = ReversibleSequence([coupling(*sub_layers)] * 3)
    model = keras.Model(inputs, run(inputs))
    for layer in sub_layers:
        layer.count = 0
    gradients(model, [batch(2, 8)], mode)
    assert [layer.count for layer in sub_layers] == [2 * 3] * len(widths)


@pytest.mark.skipif(BACKEND != "jax", reason="Asks the compiler of JAX.")
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_pitfall_23_each_sub_layer_is_evaluated_twice_in_the_program(block):
    """Counted by an operation that occurs nowhere else."""
    import jax

    class Rare(layers.Layer):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def call(self, x):
            x = ops.concatenate([x, x], -1)[..., : self.width]
            return 0.1 * jax.lax.erf(x)

    coupling, widths = block()
    inputs = keras.Input((8,))
    run = ReversibleSequence([coupling(*map(Rare, widths))] * 3)
    model = keras.Model(inputs, run(inputs))

    def total(x):
        params = [v.value for v in model.trainable_variables]
        state = [v.value for v in model.non_trainable_variables]
        return (model.stateless_call(params, state, x)[0] ** 2).sum()

    text = jax.jit(jax.grad(total)).lower(batch(2, 8)).as_text()
    # Nobody needs what the last evaluation would reconstruct, the input of
    # the run. Of this evaluation only the derivative remains, if that can do
    # without the value.
    needed = coupling is AffineCoupling
    assert text.count("chlo.erf") == 2 * 3 * len(widths) - 1 + needed


def test_pitfall_20_clipping_by_global_norm_sees_all_gradients():
    """With the norm bounded, a step is as long as learning rate times bound."""
    inputs = keras.Input((8,))
    run = ReversibleSequence(
        [AdditiveCoupling(layers.Dense(4, "tanh")) for _ in range(3)]
    )
    model = keras.Model(inputs, run(inputs))
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.1), "mse")
    before = model.get_weights()
    x = batch(16, 8)
    model.fit(x, 100 * x, 16, verbose=0)
    moved = [a - b for a, b in zip(before, model.get_weights())]
    length = np.sqrt(sum(np.sum(d**2) for d in moved))
    np.testing.assert_allclose(length, 0.1, rtol=1e-4)
