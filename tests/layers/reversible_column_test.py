import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import ReversibleColumn
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import GRAPH
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import ExactDense
from tests.twins import batch
from tests.twins import relative_errors

WIDTHS = (5, 4, 3)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Level(layers.Layer):
    def __init__(self, units, dense=ExactDense, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = dense(units)
        self.dropout = layers.Dropout(0.2, seed=3)

    def build(self, shapes):
        self.dense.build((None, sum(shape[-1] for shape in shapes)))

    def call(self, inputs):
        x = self.dropout(ops.concatenate(inputs, axis=-1))
        return self.dense(x)

    def compute_output_shape(self, shapes):
        return (shapes[0][0], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def columns(count, **arguments):
    return [
        ReversibleColumn([Level(n) for n in WIDTHS], i == 0, **arguments)
        for i in range(count)
    ]


def twins(count=3, **arguments):
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        inputs = keras.Input((6,))
        run = ReversibleSequence(columns(count, **arguments), reversible)
        yield keras.Model(inputs, run([inputs]))


@pytest.mark.parametrize("far", [False, True])
def test_gradients_equal_those_of_stored_activations(far, float64):
    model, plain = twins(far_feedback=far)
    mode = GRAPH if far else MODES[0]
    x = batch(4, 6, dtype="float64")
    for ours, theirs in zip(
        gradients(model, [x], mode), gradients(plain, [x], mode)
    ):
        assert max(relative_errors(ours, theirs)) < 1e-11
        assert all(np.any(b != 0) for b in theirs)


@pytest.mark.parametrize("scale", [0.0, -1e-5, 0.5])
def test_pitfall_11_scale_is_kept_away_from_zero(scale, float64):
    model, plain = twins(2, scale=scale, epsilon=2**-7)
    x = batch(4, 6, dtype="float64")
    ours, theirs = gradients(model, [x]), gradients(plain, [x])
    for a, b in zip(ours, theirs):
        assert max(relative_errors(a, b)) < 1e-10
    names = [v.path for v in model.trainable_variables]
    moved = [d for name, d in zip(names, ours[2]) if "/scale_" in name]
    assert len(moved) == len(WIDTHS) and all(np.all(d != 0) for d in moved)
    run = model.layers[-1]
    again = to_numpy(run.inverse(run([x])))[0]
    np.testing.assert_array_equal(again, x)
    column = run.blocks[1]
    maps = [x] + [batch(4, n, dtype="float64") for n in WIDTHS]
    y = to_numpy(column(maps))
    expected = scale if abs(scale) > 0.1 else -(2**-7) if scale < 0 else 2**-7
    first = to_numpy([column.levels[0]([maps[0], maps[2]])])[0]
    np.testing.assert_allclose(y[1], expected * maps[1] + first, rtol=1e-10)
    for a, b in zip(to_numpy(column.inverse(y)), maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_channels_first_scales(float64):
    class Shift(layers.Layer):
        def call(self, inputs):
            total = sum(inputs)  # no `tanh`: on JAX it is of float32
            return total / (1 + total * total)

    run = ReversibleSequence(
        [ReversibleColumn([Shift()] * 2, i == 0, axis=1) for i in range(3)]
    )
    inputs = keras.Input((3, 4, 4))
    model = keras.Model(inputs, run([inputs]))
    x = batch(2, 3, 4, 4, dtype="float64")
    ours = gradients(model, [x])
    run.reversible = False
    for a, b in zip(ours, gradients(model, [x])):
        assert max(relative_errors(a, b)) < 1e-11


def test_bytes_kept_do_not_grow_with_columns():
    def kept(count, reversible):
        run = ReversibleSequence(
            [
                ReversibleColumn(
                    [Level(64, layers.Dense) for _ in range(2)], i == 0
                )
                for i in range(count)
            ],
            reversible,
        )
        inputs = keras.Input((64,))
        model = keras.Model(inputs, run([inputs]))
        return saved_activation_bytes(model, batch(512, 64))

    # XLA has one more working buffer for four columns than for two.
    growth = kept(6, True) - kept(4, True)
    plain_growth = kept(6, False) - kept(4, False)
    assert plain_growth > 2 * 2 * 512 * 64 * 4
    assert growth < 0.02 * plain_growth


def test_config_round_trips():
    (layer,) = columns(1, far_feedback=True, scale=0.3, epsilon=0.1, axis=1)
    config = layer.get_config()
    again = ReversibleColumn.from_config(config)
    assert again.get_config() == config == layer.get_config()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`epsilon` must be above 0"):
        ReversibleColumn([Level(3)], epsilon=0)
    with pytest.raises(TypeError, match="`levels` must be a"):
        ReversibleColumn(["relu"])
    with pytest.raises(ValueError, match=r"takes a list of 2 tensor\(s\)"):
        ReversibleColumn([Level(3)])([batch(2, 3)])
    with pytest.raises(ValueError, match="must return shape"):
        ReversibleColumn([Level(3)])([batch(2, 3), batch(2, 4)])
