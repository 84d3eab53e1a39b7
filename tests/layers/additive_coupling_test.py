import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from tests.gradients import gradients
from tests.twins import relative_errors


def batch(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_computes_its_equations():
    f, g = layers.Dense(3, "tanh"), layers.Dense(3, "tanh")
    coupling = AdditiveCoupling(f, g)
    x = batch(5, 6)
    y = ops.convert_to_numpy(coupling(x))
    y1 = x[:, :3] + ops.convert_to_numpy(f(x[:, 3:]))
    y2 = x[:, 3:] + ops.convert_to_numpy(g(y1))
    expected = np.concatenate([y1, y2], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_half_step_swaps_the_streams():
    f = layers.Dense(3, "tanh")
    coupling = AdditiveCoupling(f)
    x1, x2 = batch(5, 3), batch(5, 3) + 1
    y1, y2 = coupling((x1, x2))
    np.testing.assert_array_equal(ops.convert_to_numpy(y1), x2)
    np.testing.assert_allclose(
        ops.convert_to_numpy(y2), x1 + ops.convert_to_numpy(f(x2)), atol=1e-6
    )


def test_symbolic_output_keeps_the_shape():
    inputs = keras.Input((None, 6))
    assert AdditiveCoupling(layers.Dense(3))(inputs).shape == (None, None, 6)
    coupling = AdditiveCoupling(layers.Dense(3), axis=-1)
    assert coupling.compute_output_shape((2, 6)) == (2, 6)


def test_config_round_trip():
    coupling = AdditiveCoupling(layers.Dense(3), layers.Dense(3), axis=1)
    config = coupling.get_config()
    again = AdditiveCoupling.from_config(config)
    assert again.get_config() == coupling.get_config()
    assert config == coupling.get_config()  # `from_config` takes no entry away
    assert (
        AdditiveCoupling.from_config(AdditiveCoupling(again.f).get_config()).g
        is None
    )


@pytest.mark.parametrize("f", [None, ops.tanh, "relu", [layers.Dense(3)]])
def test_a_sub_layer_must_be_a_layer(f):
    with pytest.raises(TypeError, match="`f` must be a `keras.layers.Layer`"):
        AdditiveCoupling(f)
    if f is not None:
        with pytest.raises(TypeError, match="`g` must be.*Received: g="):
            AdditiveCoupling(layers.Dense(3), f)


def test_an_odd_channel_count_gives_the_second_stream_one_more():
    f, g = layers.Dense(3, "tanh"), layers.Dense(4, "tanh")
    coupling = AdditiveCoupling(f, g)
    x = batch(2, 7)
    y = coupling(x)
    y1 = x[:, :3] + ops.convert_to_numpy(f(x[:, 3:]))
    np.testing.assert_allclose(ops.convert_to_numpy(y)[:, :3], y1, atol=1e-6)
    again = ops.convert_to_numpy(coupling.inverse(y))
    np.testing.assert_allclose(again, x, atol=1e-6)
    inputs = keras.Input((7,))
    ours, plain = (
        keras.Model(inputs, ReversibleSequence([coupling], run)(inputs))
        for run in (True, False)
    )
    for parts in zip(gradients(ours, [x]), gradients(plain, [x])):
        assert max(relative_errors(*parts)) < 1e-5


def test_channels_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match=r"at least 2. Received.*\(2, 1\)"):
        AdditiveCoupling(layers.Dense(1))(batch(2, 1))
    with pytest.raises(ValueError, match="must be known and at least 2"):
        AdditiveCoupling(layers.Dense(3), axis=1)(keras.Input((None, 6)))


@pytest.mark.parametrize("axis", [0, 2, -3])
def test_a_wrong_axis_is_refused(axis):
    with pytest.raises(ValueError, match="axis of the input other than"):
        AdditiveCoupling(layers.Dense(3), axis=axis)(batch(2, 6))


def test_a_sub_layer_must_keep_the_shape():
    with pytest.raises(
        ValueError, match=r"`f` must return one tensor.*\(2, 5\)"
    ):
        AdditiveCoupling(layers.Dense(5))(batch(2, 6))
    with pytest.raises(
        ValueError, match=r"`g` must return one tensor.*\(2, 1\)"
    ):
        AdditiveCoupling(layers.Dense(3), layers.Dense(1))(batch(2, 6))


def test_there_must_be_two_streams():
    with pytest.raises(ValueError, match="one tensor or a list of two streams"):
        AdditiveCoupling(layers.Dense(3))([batch(2, 3)] * 3)
