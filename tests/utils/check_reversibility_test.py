import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import check_reversibility
from tests.gradients import to_numpy
from tests.twins import Rotation
from tests.twins import batch
from tests.twins import function


def built(*blocks, **arguments):
    run = ReversibleSequence(blocks, **arguments)
    run(batch(16, 8))
    return run


def test_reports_small_errors_and_changes_nothing(capsys):
    run = built(
        AdditiveCoupling(function(3), function(None)),
        Rotation(layers.Dense(4, "tanh")),
        AdditiveCoupling(layers.Activation("tanh")),
    )
    before = to_numpy(run.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = check_reversibility(run, batch(64, 8))
    assert len(found.reconstruction) == len(found.gradient) == 3
    assert 0 < max(found.reconstruction) < 1e-5
    assert 0 < max(found.gradient) < 1e-3 and found.gradient[2] == 0
    assert found.inputs < 1e-4 and found.discrete == []
    assert run.reversible
    for a, b in zip(before, to_numpy(run.weights)):
        np.testing.assert_array_equal(a, b)
    printed = capsys.readouterr().out
    for block in run.blocks:
        assert block.name in printed


def test_finds_the_block_whose_inverse_is_wrong():
    class Wrong(Rotation):
        def uncouple(self, streams, evaluate):
            x1, x2 = super().uncouple(streams, evaluate)
            return 1.01 * x1, x2

    def dense():
        return layers.Dense(4, "tanh")

    run = built(*[AdditiveCoupling(dense()), Wrong(dense()), Rotation(dense())])
    found = check_reversibility(run, batch(16, 8))
    assert found.reconstruction[2] < 1e-5 < 1e-3 < found.reconstruction[1]
    assert found.gradient[2] < 1e-4 < 1e-3 < found.gradient[0]


class Round(layers.Layer):
    def call(self, x):
        return ops.round(x)


class TopOne(layers.Layer):
    def call(self, x):
        return x * ops.one_hot(ops.argmax(x, -1), 4)


class Bucket(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(8, 4))

    def call(self, x):
        index = ops.cast(ops.sum(x > 0, -1), "int32")
        return ops.take(self.table, index, axis=0)


@pytest.mark.parametrize("layer", [Round, TopOne, Bucket])
@pytest.mark.parametrize("exact", [True, False])
def test_pitfall_13_warns_of_sub_layers_that_make_discrete_choices(
    layer, exact
):
    discrete = layer(name="culprit")
    smooth = layers.Dense(4, "tanh")
    run = built(AdditiveCoupling(smooth, discrete), exact=exact)
    with pytest.warns(UserWarning, match=r"\['culprit'\] jump where"):
        found = check_reversibility(run, batch(256, 8))
    assert found.discrete == ["culprit"]


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16"]
)
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "hard_sigmoid"])
def test_pitfall_13_continuous_sub_layers_are_not_suspected(activation, policy):
    def dense(width):
        return layers.Dense(width, activation, dtype=policy)

    f = keras.Sequential(
        [layers.LayerNormalization(dtype=policy), dense(32), dense(4)]
    )
    found = check_reversibility(built(AdditiveCoupling(f)), batch(64, 8))
    assert found.discrete == []


def test_context_is_handed_on():
    class Add(layers.Layer):
        def call(self, x, context):
            return ops.tanh(x + context)

    run = ReversibleSequence([AdditiveCoupling(Add())])
    run(batch(4, 8), context=batch(4, 4))
    found = check_reversibility(run, batch(4, 8), context=batch(4, 4))
    assert found.inputs < 1e-5


def test_other_layers_are_refused():
    with pytest.raises(TypeError, match="Pass the layer, not the model"):
        check_reversibility(layers.Dense(3), batch(2, 8))
    with pytest.raises(ValueError, match="has to be built"):
        check_reversibility(AdditiveCoupling(layers.Dense(4)), batch(2, 8))
