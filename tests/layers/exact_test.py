"""`exact=True`: streams of integers, reconstructed bit for bit."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import AffineCoupling
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import LAST
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import function
from tests.twins import relative_errors
from tests.twins import twins

BACKEND = keras.config.backend()


def block(width=32, policy=None):
    """Half a step: with 48 of them compilation takes its time already."""

    def sub_layer():
        return keras.Sequential(
            [
                layers.LayerNormalization(dtype=policy),
                layers.Dense(4 * width, "gelu", dtype=policy),
                layers.Dense(width, dtype=policy),
            ]
        )

    return AdditiveCoupling(sub_layer())


class Spy(layers.Layer):
    """Notes what it sees, whenever it is run, compiled or not."""

    def __init__(self, seen):
        super().__init__()
        self.note = seen.append  # a list would be copied

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            return x
        if BACKEND == "jax":
            import jax

            jax.debug.callback(lambda x: self.note(np.array(x)), x)
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            note = tf.stop_gradient(x)
            tf.py_function(lambda x: self.note(x.numpy()), [note], [])
        else:
            self.note(x.detach().numpy().copy())
        return ops.tanh(x)


# XLA has no way back to Python on TensorFlow.
SEEN = [mode for mode in MODES if mode != "xla"]


@pytest.mark.parametrize(
    "exact, policy, mode",
    [
        *((True, "float32", mode) for mode in SEEN),
        (True, "mixed_bfloat16", SEEN[-1]),
        (False, "float32", SEEN[0]),
    ],
)
def test_pitfall_21_reconstruction_is_equal_bit_for_bit(
    exact, policy, mode, request, full_compiler
):
    if mode == "graph":  # see `exact` in the docstring
        import tensorflow as tf

        before = tf.config.optimizer.get_experimental_options()
        request.addfinalizer(
            lambda: tf.config.optimizer.set_experimental_options(
                {"remapping": before.get("remapping", True)}
            )
        )
        tf.config.optimizer.set_experimental_options({"remapping": False})
    seen = []
    first = AdditiveCoupling(Spy(seen))
    blocks = [first, *[block(8, policy) for _ in range(6)]]
    inputs = keras.Input((16,))
    run = ReversibleSequence(blocks, exact=exact)
    model = keras.Model(inputs, run(inputs))
    seen.clear()
    gradients(model, [3 * batch(64, 16)], mode)
    if BACKEND == "jax":
        import jax

        jax.effects_barrier()
    forward, backward = seen
    assert np.array_equal(forward, backward) == exact
    np.testing.assert_allclose(backward, forward, atol=0.1)


def test_pitfall_21_gradients_equal_those_of_the_plain_twin():
    model, plain = twins(
        lambda: [AdditiveCoupling(function(seed)) for seed in (3, 4)],
        exact=True,
    )
    results = []
    for m in (model, plain):
        keras.utils.set_random_seed(1)
        results.append(gradients(m, [batch(16, 8)], LAST))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4


# The others take long to trace or to compile them.
BOUNDS = [("float32", 1e-4), ("mixed_bfloat16", 5e-2)][BACKEND != "torch" :]


@pytest.mark.slow
@pytest.mark.parametrize("policy, bound", BOUNDS)
def test_pitfall_10_gradients_at_48_blocks(policy, bound):
    inputs = keras.Input((64,))
    blocks = [block(policy=policy) for _ in range(48)]
    run = ReversibleSequence(blocks, scan=BACKEND == "jax")
    model = keras.Model(inputs, run(inputs))
    x = batch(32, 64)
    ours = gradients(model, [x])
    run.reversible = False
    plain = gradients(model, [x])
    for a, b in zip(ours, plain):
        assert max(relative_errors(a, b)) < bound
        assert min(np.linalg.norm(x) for x in b) > 1e-3


def test_streams_are_rounded_to_steps_of_two_to_the_minus_sixteen():
    x = batch(4, 8) / 3
    for reversible in (True, False):
        layer = AdditiveCoupling(layers.Activation("tanh"))
        run = ReversibleSequence([layer], reversible, exact=True)
        y = to_numpy([run(x)])[0]
        np.testing.assert_array_equal(y * 2**16, np.round(y * 2**16))
        np.testing.assert_array_equal(
            y[:, :4], np.round(x[:, 4:] * 2**16) / 2**16
        )
        again = to_numpy([run.inverse(y)])[0]
        np.testing.assert_array_equal(again, np.round(x * 2**16) / 2**16)


def test_pitfall_21_bytes_kept_do_not_grow_with_depth():
    def kept(depth, reversible):
        inputs = keras.Input((64,))
        blocks = [block(policy="float32") for _ in range(depth)]
        run = ReversibleSequence(blocks, reversible, exact=True)
        model = keras.Model(inputs, run(inputs))
        return saved_activation_bytes(model, np.ones((512, 64), "float32"))

    few, many = (kept(depth, True) for depth in (3, 12))
    plain_few, plain_many = (kept(depth, False) for depth in (3, 12))
    assert plain_many > 3 * plain_few
    assert many - few < 0.02 * (plain_many - plain_few)


def test_blocks_that_multiply_are_refused():
    for block in (
        AffineCoupling(layers.Dense(8), layers.Dense(8), name="scaled"),
        MomentumCoupling(layers.Dense(4), name="scaled"),
    ):
        with pytest.raises(ValueError, match=r"only add.*\['scaled'\]"):
            ReversibleSequence([block], exact=True)
