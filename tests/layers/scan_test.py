"""`scan=True`: identical blocks as one loop."""

import time

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import gradient_step
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import function
from tests.twins import relative_errors

BACKEND = keras.config.backend()
needs_loop = pytest.mark.skipif(BACKEND != "jax", reason="JAX has the loop.")


def build(depth, norm=layers.BatchNormalization, **arguments):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8,))
    blocks = [
        AdditiveCoupling(function(i, norm=norm), function(None, norm=norm))
        for i in range(depth)
    ]
    run = ReversibleSequence(blocks, **arguments)
    return keras.Model(inputs, layers.Dense(3)(run(inputs)))


# Only JAX has the loop: elsewhere `scan` changes nothing, in any mode.
@pytest.mark.parametrize("exact", [False, True][: 1 + (BACKEND == "jax")])
def test_gradients_state_and_losses_equal_those_without(exact):
    found = []
    for scan in (True, False):
        model = build(3, scan=scan, exact=exact)
        keras.utils.set_random_seed(1)
        step = gradient_step(model)
        for _ in range(2):
            parts = step([batch(16, 8)])
        found.append((*parts, to_numpy(model.non_trainable_variables)))
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs)) < 2e-4


def test_context_and_mask_reach_the_loop():
    class Add(layers.Layer):
        def call(self, x, context, mask=None):
            y = keras.ops.tanh(x + context)
            return y if mask is None else y * keras.ops.cast(mask, y.dtype)

    found = []
    for scan in (True, False):
        inputs, context = keras.Input((8,)), keras.Input((4,))
        mask = keras.Input((4,), dtype="bool")
        blocks = [AdditiveCoupling(Add()) for _ in range(3)]
        run = ReversibleSequence(blocks, scan=scan)
        outputs = run(inputs, context=context, mask=mask)
        model = keras.Model([inputs, context, mask], outputs)

        class Masked(keras.Model):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def call(self, x, training=False):
                return self.model([*x, x[1] > 0])

        model, x = Masked(model), [batch(3, 8), batch(3, 4)]
        model([keras.ops.convert_to_tensor(v) for v in x])
        found.append(gradients(model, x))
    for ours, theirs in zip(*found):
        if theirs:
            assert max(relative_errors(ours, theirs)) < 1e-5


@needs_loop
@pytest.mark.slow
def test_compile_time_and_bytes_kept_do_not_grow_with_depth():
    def measure(depth, **arguments):
        model = build(depth, layers.LayerNormalization, **arguments)
        start = time.process_time()
        kept = saved_activation_bytes(model, np.ones((4096, 8), "float32"))
        return kept, time.process_time() - start

    measure(2, scan=True)
    kept, seconds = zip(*[measure(d, scan=True) for d in (2, 6)])
    plain_kept, _ = zip(*[measure(d, reversible=False) for d in (2, 6)])
    _, unrolled_seconds = zip(*[measure(d) for d in (2, 6)])
    assert plain_kept[1] > 2 * plain_kept[0]
    assert kept[1] - kept[0] < 0.02 * (plain_kept[1] - plain_kept[0])
    # Reading 3 times as many variables takes some time; compiling does not.
    growth = seconds[1] - seconds[0]
    assert growth < 0.25 * (unrolled_seconds[1] - unrolled_seconds[0])


def test_blocks_that_differ_are_refused():
    def dense(activation="tanh"):
        return AdditiveCoupling(layers.Dense(4, activation))

    def build(*blocks):
        ReversibleSequence(blocks, scan=True)(batch(2, 8))

    build(dense(), dense())
    with pytest.raises(ValueError, match="differ in configuration"):
        build(dense(), dense("relu"))
    shared = layers.Dropout(0.5)
    with pytest.raises(ValueError, match="share a layer with state"):
        build(AdditiveCoupling(shared), AdditiveCoupling(shared))
