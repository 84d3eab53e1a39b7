"""What is kept for the backward pass in half precision, or on the host."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_efficient
from keras_efficient import backend
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import InvertibleDense
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import ENDS
from tests.gradients import gradients
from tests.marks import once
from tests.twins import batch

BACKEND = keras.config.backend()
STORES = (None, "bfloat16", "host")


def segment(width, hidden):
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(hidden, "gelu"),
            layers.Dropout(0.1, seed=3),
            layers.Dense(width),
        ]
    )


def recomputed(store, depth=2, width=8, hidden=16):
    """Segments, of which the inputs are kept."""
    segments = [segment(width, hidden) for _ in range(depth)]
    return Recompute(segments, store=store)


def run(store, depth=2, width=8, hidden=16):
    """Blocks, some of which keep their inputs."""
    blocks = []
    for _ in range(depth):
        blocks += [
            AdditiveCoupling(segment(width // 2, hidden)),
            InvertibleDense(width),
        ]
    return ReversibleSequence(blocks, store=store)


def outputs(store, width=8, hidden=16):
    """Blocks of which only the outputs of the last are kept."""
    blocks = [AdditiveCoupling(segment(width // 2, hidden)) for _ in range(2)]
    return ReversibleSequence(blocks, store=store)


def model_of(build, *arguments, width=8, **sizes):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((width,))
    return keras.Model(inputs, build(*arguments, width=width, **sizes)(inputs))


def errors(build, store, mode):
    """Relative errors of outputs, and of gradients, by the plain layer's."""
    plain, ours = (
        gradients(model_of(build, s), [batch(16, 8)], mode)
        for s in (None, store)
    )
    return [
        max(
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(*parts)
            if np.linalg.norm(b) > 0.1
        )
        for parts in zip(ours, plain)
    ]


@pytest.mark.parametrize("mode", ENDS)
@pytest.mark.parametrize("build", (recomputed, outputs))
def test_gradients_are_those_of_rounded_activations(build, mode):
    of_outputs, *of_gradients = errors(build, "bfloat16", mode)
    assert of_outputs == 0.0
    # Without the rounding (XLA could leave it out) there would be no error.
    assert 1e-5 < min(of_gradients) <= max(of_gradients) < 1e-2


@pytest.mark.parametrize("build", (recomputed, run))
def test_the_memory_of_the_host_changes_no_number(build):
    assert max(errors(build, "host", ENDS[-1])) < 1e-6


@pytest.mark.parametrize("build", (recomputed, run))
def test_half_of_the_bytes_are_kept(build):
    x = batch(2048, 64)

    def grown(store):
        few, many = (
            saved_activation_bytes(
                model_of(build, store, depth, width=64, hidden=64), x
            )
            for depth in (2, 5)
        )
        return many - few

    plain, half = grown(None), grown("bfloat16")
    assert plain > 3 * 0.9 * x.nbytes
    # (A third on PyTorch, where streams are views of what is kept in full.)
    assert 0.5 * x.nbytes < half < 0.6 * plain


@pytest.mark.skipif(BACKEND == "torch", reason="it can")
def test_backends_say_that_they_cannot_keep_on_the_host(monkeypatch):
    layer = recomputed("host")
    layer.build((2, 8))  # as long as nothing is called
    if BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        import tensorflow as tf

        device = tf.config.LogicalDevice("/device:GPU:0", "GPU")
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda: [device])
    with pytest.raises(NotImplementedError, match="memory of the host"):
        layer(batch(2, 8))


@once
def test_what_lies_on_the_host_stays_where_it_is():
    x = keras.ops.ones((2, 3))
    kept, bring_back = backend.to_host(x)
    assert kept is x and bring_back(kept) is x


@once
def test_a_model_keeps_what_goes_into_segments():
    def build():
        keras.utils.set_random_seed(7)
        inputs = x = keras.Input((8,))
        for _ in range(3):
            x = segment(8, 16)(x)
        return keras.Model(inputs, x)

    found = []
    for store in STORES:
        model = keras_efficient.recompute(build(), store=store)
        found.append(gradients(model, [batch(16, 8)]))
    (y, _, plain), (y_16, _, rounded), (_, _, hosted) = found
    np.testing.assert_array_equal(y[0], y_16[0])
    np.testing.assert_array_equal(plain[0], hosted[0])
    assert 0 < np.linalg.norm(plain[0] - rounded[0])
    np.testing.assert_allclose(plain[0], rounded[0], atol=0.05)


@once
def test_integers_are_kept_on_the_host_as_they_are():
    found = []
    for store in (None, "host"):
        keras.utils.set_random_seed(7)
        blocks = [AdditiveCoupling(segment(4, 8)) for _ in range(3)]
        inputs = keras.Input((8,))
        run = ReversibleSequence(blocks, exact=True, store=store)
        model = keras.Model(inputs, run(inputs))
        found.append(gradients(model, [batch(4, 8)]))
    for ours, theirs in zip(*found):
        np.testing.assert_array_equal(ours[0], theirs[0])


@once
def test_configs_and_arguments():
    for layer in (recomputed("bfloat16"), run("host")):
        again = type(layer).from_config(layer.get_config())
        assert again.store == layer.store
    for build in (recomputed, run):
        with pytest.raises(ValueError, match="`store` must be 'bfloat16'"):
            build("float16")
    blocks = [AdditiveCoupling(layers.Dense(4))]
    for more in ({"exact": True}, {"scan": True}):
        with pytest.raises(ValueError, match="goes with `scan=False`"):
            ReversibleSequence(blocks, store="bfloat16", **more)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    with pytest.raises(ValueError, match="Received: store='disk'"):
        keras_efficient.recompute(model, store="disk")
