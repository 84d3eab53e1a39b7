"""Stages, nesting, shared inputs, shared layers."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import AffineCoupling
from keras_efficient.layers import InvertibleDownsampling2D
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import ENDS
from tests.gradients import GRAPH
from tests.gradients import LAST
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import ExactDense
from tests.twins import batch
from tests.twins import function
from tests.twins import relative_errors


def compare(build, inputs, mode, bound):
    """Check gradients of `build(reversible)` against the plain twin."""
    results = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        model = build(reversible)
        keras.utils.set_random_seed(1)
        results.append(gradients(model, inputs, mode))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < bound
        assert all(np.any(b != 0) for b in theirs)


class Conditioned(layers.Layer):
    """Looks at a context of any structure, and at a mask."""

    def __init__(self):
        super().__init__()
        self.dense = ExactDense(4)
        self.dropout = layers.Dropout(0.3, seed=2)

    def build(self, x_shape, context_shape):
        self.dense.build(x_shape)

    def call(self, x, context, mask=None):
        y = self.dense(x) * context["scale"]
        y = y + ops.take(context["table"], context["index"], axis=0)
        if mask is not None:
            y = ops.where(mask[:, None], y, ops.zeros_like(y))
        return self.dropout(y)


class WithContext(keras.Model):
    def __init__(self, reversible):
        super().__init__()
        blocks = [
            AdditiveCoupling(Conditioned(), Conditioned()),
            AdditiveCoupling(Conditioned()),
            AdditiveCoupling(ExactDense(4), Conditioned()),
        ]
        self.run = ReversibleSequence(blocks, reversible)

    def call(self, inputs, training=False):
        x, scale, table = inputs
        context = {"scale": scale, "table": table}
        context["index"] = ops.convert_to_tensor([0, 2, 1, 0, 2])
        mask = ops.convert_to_tensor([True, False, True, True, False])
        return self.run(x, context=context, mask=mask, training=training)


@pytest.mark.parametrize("mode", ENDS)
def test_pitfall_01_gradients_of_shared_inputs(mode, float64):
    inputs = [batch(5, 8), batch(5, 4), batch(3, 4)]
    inputs = [x.astype("float64") for x in inputs]

    def build(reversible):
        model = WithContext(reversible)
        model([ops.convert_to_tensor(x) for x in inputs])
        return model

    compare(build, inputs, mode, 1e-11)


def test_context_in_a_functional_model():
    class Add(layers.Layer):
        def call(self, x, context):
            return ops.tanh(x + context)

    inputs, context = keras.Input((8,)), keras.Input((4,))
    run = ReversibleSequence([AdditiveCoupling(Add(), Add())])
    model = keras.Model([inputs, context], run(inputs, context=context))
    x = [batch(3, 8), batch(3, 4)]
    _, d_inputs, _ = gradients(model, x)
    assert all(np.any(d != 0) for d in d_inputs)
    again = run.inverse(run(x[0], context=x[1]), context=x[1])
    np.testing.assert_allclose(to_numpy([again])[0], x[0], atol=1e-5)


def test_pitfall_17_a_mask_from_the_layer_below_reaches_sub_layers():
    class Masked(layers.Layer):
        supports_masking = True

        def call(self, x, mask=None):
            if mask is None:  # when it is built
                return x
            return x * ops.cast(mask, x.dtype)[..., None]

    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(tokens)
    outputs = ReversibleSequence([AdditiveCoupling(Masked())])(x)
    model = keras.Model(tokens, [x, outputs])
    x, y = to_numpy(model(np.array([[1, 2, 0, 3]])))
    kept = np.array([1, 1, 0, 1])[:, None]
    np.testing.assert_allclose(y[0, :, 4:], x[0, :, :4] + kept * x[0, :, 4:])


def conv(filters):
    return keras.Sequential(
        [
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("gelu"),
            layers.SpatialDropout2D(0.2, seed=1),
        ]
    )


def test_pitfall_14_stages_with_layers_between_them():
    def build(reversible):
        inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(8, 3, padding="same")(inputs)
        for filters in (4, 16, 8):
            blocks = [AdditiveCoupling(conv(filters)) for _ in range(2)]
            x = ReversibleSequence(blocks, reversible)(x)
            if filters == 4:
                x = InvertibleDownsampling2D()(x)
            elif filters == 16:
                x = layers.Conv2D(16, 3, 2, padding="same")(x)
        return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))

    compare(build, [batch(8, 8, 8, 3)], GRAPH, 2e-4)


@pytest.mark.parametrize("mode", ENDS)
def test_pitfall_17_runs_inside_of_runs(mode):
    """A run as a sub-layer, in a `Recompute`, in a TimeDistributed layer."""

    def build(reversible):
        def run(*sub_layers):
            blocks = [AdditiveCoupling(f) for f in sub_layers]
            return ReversibleSequence(blocks, reversible)

        inner = run(layers.Dense(2, "tanh"), layers.Dropout(0.3, seed=1))
        recomputed = run(layers.Dense(2, "tanh"))
        if reversible:
            recomputed = Recompute([recomputed, layers.Dropout(0.2, seed=4)])
        else:
            recomputed = keras.Sequential(
                [recomputed, layers.Dropout(0.2, seed=4)]
            )
        inputs = keras.Input((8,))
        x = run(inner, recomputed, inner, function(3))(inputs)
        x = layers.Reshape((2, 4))(x)
        x = layers.TimeDistributed(run(layers.Dense(2, "tanh")))(x)
        return keras.Model(inputs, layers.Dense(2)(x))

    compare(build, [batch(16, 8)], mode, 1e-4)


@pytest.mark.parametrize("mode", ENDS)
def test_pitfall_06_one_layer_object_in_several_places(mode, float64):
    def build(reversible):
        one, two = ExactDense(4), ExactDense(4)
        block = AdditiveCoupling(one, two)
        blocks = [block, AdditiveCoupling(two, one), block]
        inputs = keras.Input((8,))
        run = ReversibleSequence(blocks, reversible)
        return keras.Model(inputs, run(run(inputs)) + one(inputs[:, :4])[:, :1])

    compare(build, [batch(5, 8, dtype="float64")], mode, 1e-11)


def test_pitfall_08_only_one_stream_is_used(float64):
    def build(reversible):
        blocks = [AdditiveCoupling(ExactDense(4)) for _ in range(3)]
        inputs = [keras.Input((4,)), keras.Input((4,))]
        first, second = ReversibleSequence(blocks, reversible)(inputs)
        return keras.Model(inputs, first if reversible else first + 0 * second)

    # The third block writes the other stream: its gradient is zero.
    results = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        x = batch(5, 4, dtype="float64")
        results.append(gradients(build(reversible), [x, x + 1], LAST))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-11
    assert np.all(results[0][2][-1] == 0) and np.any(results[0][2][0] != 0)


@pytest.mark.parametrize("mode", ENDS)
def test_pitfall_08_frozen_and_unused_parameters(mode):
    class Partly(layers.Layer):
        def build(self, shape):
            self.used = self.add_weight(shape=(shape[-1],))
            self.unused = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return ops.tanh(x * self.used)

    frozen = layers.Dense(4, "tanh", trainable=False)
    constant = AdditiveCoupling(layers.Lambda(ops.ones_like))
    inputs = keras.Input((8,))
    run = ReversibleSequence([AdditiveCoupling(Partly(), frozen), constant] * 2)
    model = keras.Model(inputs, run(inputs))
    _, (d_x,), d_params = gradients(model, [batch(5, 8)], mode)
    assert len(d_params) == 2
    assert sorted(np.any(d != 0) for d in d_params) == [False, True]
    assert np.all(np.isfinite(d_x)) and np.any(d_x != 0)


def test_pitfall_08_an_input_that_needs_no_gradient():
    """The parameters get theirs all the same."""
    run = ReversibleSequence([AdditiveCoupling(layers.Dense(4))])
    model = keras.Sequential([run])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x = batch(8, 8)
    model.build(x.shape)
    before = to_numpy(model.weights)
    model.fit(x, 0 * x, verbose=0)
    for a, b in zip(before, to_numpy(model.weights)):
        assert np.any(a != b)


@pytest.mark.parametrize("mode", ENDS)
def test_pitfall_12_a_cotangent_that_is_not_finite_stays_where_it_is(mode):
    """It must not find its way into the reconstruction of other examples."""

    class Inverse(layers.Layer):
        def call(self, x):
            return 1 / x

    inputs = keras.Input((8,))
    blocks = [AdditiveCoupling(layers.Dense(4, "tanh")) for _ in range(3)]
    run = ReversibleSequence(blocks)
    model = keras.Model(inputs, Inverse()(run(inputs)))
    x = np.abs(batch(4, 8)) + 0.1
    x[0] = 0  # with zero biases it stays zero
    _, (d_x,), _ = gradients(model, [x], mode)
    assert not np.all(np.isfinite(d_x[0]))
    assert np.all(np.isfinite(d_x[1:]))


def test_pitfall_07_relu_before_and_a_skip_connection_around(float64):
    def build(reversible):
        inputs = keras.Input((8,))
        x = layers.ReLU()(ExactDense(8)(inputs))
        blocks = [AdditiveCoupling(ExactDense(4)) for _ in range(3)]
        y = ReversibleSequence(blocks, reversible)(x)
        return keras.Model(inputs, layers.ReLU()(y) + x * y)

    compare(build, [batch(5, 8, dtype="float64")], GRAPH, 1e-11)


def test_pitfall_05_statistics_in_training_in_inference_and_frozen():
    norm = layers.BatchNormalization(momentum=0.5)
    run = ReversibleSequence([AdditiveCoupling(norm)])
    x = batch(64, 8) + 3
    run(x)
    np.testing.assert_array_equal(to_numpy([norm.moving_mean])[0], 0)
    run(x, training=True)
    once = 0.5 * x[:, 4:].mean(0)
    np.testing.assert_allclose(to_numpy([norm.moving_mean])[0], once, rtol=1e-5)
    norm.trainable = False
    y = to_numpy([run(x, training=True)])[0]
    np.testing.assert_allclose(to_numpy([norm.moving_mean])[0], once, rtol=1e-5)
    np.testing.assert_allclose(
        y[:, 4:], x[:, :4] + to_numpy([norm(x[:, 4:])])[0], rtol=1e-5
    )


def test_pitfall_15_regularizers_of_sub_layers_reach_the_model():
    dense = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(1.0))
    inputs = keras.Input((8,))
    run = ReversibleSequence([AdditiveCoupling(dense), AdditiveCoupling(dense)])
    model = keras.Model(inputs, run(inputs))
    model(batch(2, 8), training=True)
    (loss,) = model.losses
    expected = np.sum(to_numpy([dense.kernel])[0] ** 2)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_a_sequence_of_different_couplings_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run = ReversibleSequence(
            [AffineCoupling(layers.Dense(8), layers.Dense(8))]
        )
        y = run(batch(2, 8))  # outside of a model
        assert keras.backend.standardize_dtype(y.dtype) == "float32"
        assert run.compute_dtype == run.blocks[0].compute_dtype == "float32"
        assert run.blocks[0].f.compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
