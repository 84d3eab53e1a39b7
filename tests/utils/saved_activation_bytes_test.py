import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes


def batch(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def function():
    return keras.Sequential(
        [
            layers.Dense(32, activation="gelu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=1),
            layers.GaussianNoise(0.1),
        ]
    )


def build(reversible=True):
    inputs = keras.Input((64,))
    blocks = [AdditiveCoupling(function()) for _ in range(4)]
    x = ReversibleSequence(blocks, reversible)(inputs)
    return keras.Model(inputs, layers.Dense(1)(layers.BatchNormalization()(x)))


def test_leaves_the_model_unchanged():
    for reversible in (True, False):
        model = build(reversible)
        # Away from their initial values, to which a reset would bring them.
        model(batch(16, 64), training=True)
        before = [ops.convert_to_numpy(v) for v in model.variables]
        assert saved_activation_bytes(model, batch(128, 64)) > 0
        for variable, old in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
        # No tensor of a trace was left behind: the model still runs.
        y = ops.convert_to_numpy(model(batch(16, 64), training=True))
        assert np.isfinite(y).all()


def test_the_model_still_trains_afterwards():
    model = build()
    saved_activation_bytes(model, batch(32, 64))
    model.compile("sgd", "mse")
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.fit(batch(32, 64), batch(32, 1), verbose=0)
    assert any(
        np.any(ops.convert_to_numpy(v) != old)
        for v, old in zip(model.trainable_variables, before)
    )


def test_grows_with_the_batch():
    model = build(reversible=False)
    small = saved_activation_bytes(model, batch(512, 64))
    large = saved_activation_bytes(model, batch(2048, 64))
    assert 3.5 < large / small < 4.5


@pytest.mark.quick
def test_is_smaller_for_a_reversible_model():
    x = batch(2048, 64)
    reversible, plain = (saved_activation_bytes(build(r), x) for r in (1, 0))
    assert reversible < 0.6 * plain
    # Each of the four sub-layers of the plain twin keeps several tensors.
    assert plain > 4 * 2 * x.nbytes // 2


def test_takes_nested_inputs_and_outputs():
    first, second = keras.Input((64,)), keras.Input((64,))
    hidden = layers.Dense(64, activation="tanh")
    outputs = {"a": layers.Dense(1)(hidden(first)), "b": hidden(second)}
    model = keras.Model({"first": first, "second": second}, outputs)
    x = {"first": batch(512, 64), "second": batch(512, 64)}
    x["second"] = ops.convert_to_tensor(x["second"])
    # `tanh` keeps its outputs.
    assert saved_activation_bytes(model, x) >= 2 * 512 * 64 * 4


def test_counts_what_losses_keep():
    """The losses that layers add are part of the step."""

    def measured(regularizer):
        inputs = keras.Input((64,))
        x = layers.Dense(64, activity_regularizer=regularizer)(inputs)
        model = keras.Model(inputs, layers.Dense(1)(layers.Dense(8)(x)))
        return saved_activation_bytes(model, batch(512, 64))

    def entropy(x):
        return ops.sum(ops.sigmoid(x) * ops.sin(x))

    # JAX shares a little of the room between the two.
    assert measured(entropy) >= measured(None) + 0.8 * 512 * 64 * 4


def test_what_trains_in_a_frozen_parent_counts():
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, "tanh"), layers.Dense(8, "tanh")]
    )
    model.trainable = False
    assert saved_activation_bytes(model, batch(32, 8)) == 0
    model.layers[-1].trainable = True
    model.layers[-1].enable_lora(2)
    assert not model.trainable_variables  # so says Keras
    assert saved_activation_bytes(model, batch(32, 8)) >= 4 * 32 * 8
