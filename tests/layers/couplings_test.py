"""Every coupling: its equations, its inverse, its gradient."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import AffineCoupling
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleLayer
from keras_efficient.layers import ReversibleSequence
from tests.compilers import compiled
from tests.gradients import LAST
from tests.gradients import MODES
from tests.gradients import gradient_step
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import DerivedAdditive
from tests.twins import DerivedAffine
from tests.twins import DerivedMomentum
from tests.twins import ExactDense
from tests.twins import Rotation
from tests.twins import batch
from tests.twins import relative_errors
from tests.twins import twins


def f(width=4):
    return keras.Sequential([layers.Dropout(0.3, seed=1), ExactDense(width)])


class WithExtra(layers.Layer):
    """Returns something else besides what is to be added."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def build(self, shape):
        self.layer.build(shape)

    def call(self, x):
        y = self.layer(x)
        return y, {"extra": ops.sum(y)}


COUPLINGS = {
    "additive": lambda: AdditiveCoupling(f(), f()),
    "half step": lambda: AdditiveCoupling(f()),
    "additive, second first": lambda: AdditiveCoupling(f(), f(), first=2),
    "half step, second first": lambda: AdditiveCoupling(f(), first=2),
    "affine": lambda: AffineCoupling(f(8), f(8)),
    "affine half step": lambda: AffineCoupling(f(8)),
    "affine, sigmoid": lambda: AffineCoupling(f(8), f(8), scale="sigmoid"),
    "affine, exp": lambda: AffineCoupling(f(8), f(8), scale="exp"),
    "split": lambda: AdditiveCoupling(f(2), f(6), split=2),
    "affine split": lambda: AffineCoupling(f(4), f(12), split=0.25),
    "tuples": lambda: AdditiveCoupling(WithExtra(f()), WithExtra(f())),
    "momentum": lambda: MomentumCoupling(f(), 0.7),
    "own": lambda: Rotation(f()),
    "derived additive": lambda: DerivedAdditive(f(), f()),
    "derived affine": lambda: DerivedAffine(f(8), f(8), clamp=0.5),
    "derived momentum": lambda: DerivedMomentum(f(), 0.7),
}
every_coupling = pytest.mark.parametrize(
    "coupling", COUPLINGS.values(), ids=COUPLINGS
)


def check_gradients(name, depth, mode):
    coupling = COUPLINGS[name]
    model, plain = twins(lambda: [coupling() for _ in range(depth)], ExactDense)
    x = batch(6, 8, dtype="float64")
    for ours, theirs in zip(
        gradients(model, [x], mode), gradients(plain, [x], mode)
    ):
        assert max(relative_errors(ours, theirs)) < 1e-11
        assert all(np.any(b != 0) for b in theirs)


@pytest.mark.parametrize(
    "name, depth, mode",
    [
        *((name, 2, MODES[0]) for name in COUPLINGS),
        # By mode differs the engine: with derivatives given, and with its own.
        *(("additive", 2, mode) for mode in MODES[1:2]),
        *(("own", 2, mode) for mode in MODES[2:]),
    ],
)
def test_pitfall_01_gradients_equal_those_of_stored_activations(
    name, depth, mode, float64
):
    check_gradients(name, depth, mode)


@pytest.mark.parametrize("name", ["additive", "affine", "own"])
def test_pitfall_01_gradients_of_one_block(name, float64, full_compiler):
    check_gradients(name, 1, MODES[0])


@every_coupling
def test_inverse_undoes_the_call_both_ways(coupling, float64):
    layer = coupling()
    x = batch(6, 8, dtype="float64")
    layer.build(x.shape)

    @compiled
    def both_ways(x):
        y = layer(x)
        return y, layer.inverse(y), layer(layer.inverse(x))

    y, *again = to_numpy(both_ways(ops.convert_to_tensor(x)))
    assert np.max(np.abs(y - x)) > 0.05
    for found in again:
        np.testing.assert_allclose(found, x, atol=1e-13)


@every_coupling
def test_gradient_equals_finite_differences(coupling, float64, monkeypatch):
    monkeypatch.setattr(
        layers.Dropout, "call", lambda self, x, training=None: x
    )
    inputs = keras.Input((8,))
    model = keras.Model(inputs, coupling()(inputs))
    x, epsilon = batch(3, 8, dtype="float64"), 1e-6
    step = gradient_step(model)
    _, _, d_params = step([x])

    def total():
        return np.sum(step([x])[0][0] ** 2)

    for variable, d in zip(model.trainable_variables, d_params, strict=True):
        value, direction = ops.convert_to_numpy(variable), np.cos(d + 1)
        variable.assign(value + epsilon * direction)
        slope = total()
        variable.assign(value - epsilon * direction)
        slope -= total()
        variable.assign(value)
        np.testing.assert_allclose(
            slope / (2 * epsilon), np.sum(d * direction), rtol=1e-6, atol=1e-8
        )


SCALES = {
    "clamp": lambda u: np.exp(u / np.sqrt(1 + (u / 0.5) ** 2)),
    "sigmoid": lambda u: 1 / (1 + np.exp(-u - 2)),
    "exp": np.exp,
}


@pytest.mark.parametrize("scale", SCALES)
def test_scales_and_half_steps_of_affine_couplings(scale):
    coupling = AffineCoupling(f(6), clamp=0.5, scale=scale)
    x1, x2 = batch(6, 3), batch(6, 5)
    y1, y2 = to_numpy(coupling([x1, x2]))
    u, t = np.split(*to_numpy([coupling.f(x2)]), 2, -1)
    np.testing.assert_array_equal(y1, x2)
    np.testing.assert_allclose(y2, SCALES[scale](u) * x1 + t, atol=1e-5)
    for found, x in zip(to_numpy(coupling.inverse([y1, y2])), (x1, x2)):
        np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_one_tensor_is_split_anywhere(axis):
    """Here one of five rows, planes or channels, and the other four."""
    x = batch(2, 5, 5, 5)
    x1, x2 = np.split(x, [1], axis)
    coupling = AdditiveCoupling(
        layers.Lambda(lambda x: ops.sum(x, axis, keepdims=True)),
        layers.Lambda(lambda x: ops.repeat(x, 4, axis)),
        axis,
        split=0.2,
    )
    y1 = x1 + x2.sum(axis, keepdims=True)
    expected = np.concatenate([y1, x2 + np.repeat(y1, 4, axis)], axis)
    (y,) = to_numpy([coupling(x)])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(*to_numpy([coupling.inverse(y)]), x, atol=1e-4)


class Scaled(layers.Layer):
    def build(self, shape):
        self.dense = layers.Dense(4, "tanh")
        self.dense.build(shape)

    def call(self, x, factor=None):
        return self.dense(x) * factor


def test_arguments_of_each_block_by_itself():
    factors = [np.float32([[1.0, 2, 3, 4]]), np.float32([[0.5, -1, 2, 0.1]])]

    def build(reversible):
        keras.utils.set_random_seed(7)
        inner = ReversibleSequence([AdditiveCoupling(Scaled(), Scaled())])
        run = ReversibleSequence(
            [AdditiveCoupling(Scaled()), inner], reversible
        )
        inputs = [keras.Input((8,)), *[keras.Input((4,)) for _ in range(2)]]
        x, *own = inputs
        own = [{"factor": factor} for factor in own]
        return keras.Model(inputs, run(x, block_arguments=own)), run

    x = [batch(3, 8), *[np.repeat(f, 3, 0) for f in factors]]
    (model, run), (plain, _) = build(True), build(False)
    for ours, theirs in zip(gradients(model, x), gradients(plain, x)):
        assert max(relative_errors(ours, theirs)) < 1e-5
        assert all(np.any(d != 0) for d in theirs)
    first, second = run.blocks
    x1, x2 = x[0][:, :4], x[0][:, 4:]
    x1, x2 = x2, x1 + to_numpy([first.f.dense(x2)])[0] * factors[0]
    coupling = second.blocks[0]
    y1 = x1 + to_numpy([coupling.f.dense(x2)])[0] * factors[1]
    y2 = x2 + to_numpy([coupling.g.dense(y1)])[0] * factors[1]
    (y,) = to_numpy([model(x)])
    np.testing.assert_allclose(y, np.concatenate([y1, y2], 1), atol=1e-5)
    own = [{"factor": factor} for factor in factors]
    again = to_numpy([run.inverse(y, block_arguments=own)])[0]
    np.testing.assert_allclose(again, x[0], atol=1e-5)
    with pytest.raises(ValueError, match="for each of the 2 blocks"):
        run(x[0], block_arguments=own[:1])
    with pytest.raises(ValueError, match="has a call argument of the name"):
        run(x[0], block_arguments=[own[0], {"other": factors[0]}])
    with pytest.raises(ValueError, match="has a call argument of the"):
        first(x[0], block_arguments=own)


def test_half_steps_of_unequal_streams():
    """They change places at each step; gradients are those of the twin."""
    widths = (5, 2, 5)  # of what is added: the first stream in each step

    def build(reversible):
        keras.utils.set_random_seed(7)
        blocks = [
            AdditiveCoupling(layers.Dense(n, "tanh"), split=5) for n in widths
        ]
        inputs = keras.Input((7,))
        run = ReversibleSequence(blocks, reversible)
        return keras.Model(inputs, run(inputs)), run

    x = batch(3, 7)
    (model, run), (plain, _) = build(True), build(False)
    for ours, theirs in zip(gradients(model, [x]), gradients(plain, [x])):
        assert max(relative_errors(ours, theirs)) < 1e-5
    x1, x2 = x[:, :5], x[:, 5:]
    for block in run.blocks:
        x1, x2 = x2, x1 + to_numpy([block.f(x2)])[0]
    (y,) = to_numpy([model(x)])
    np.testing.assert_allclose(y, np.concatenate([x1, x2], 1), atol=1e-5)
    np.testing.assert_allclose(*to_numpy([run.inverse(y)]), x, atol=1e-5)


def test_the_second_stream_is_updated_first():
    coupling = AdditiveCoupling(f(3), f(5), first=2)
    x1, x2 = batch(6, 5), batch(6, 3)
    y1, y2 = coupling([x1, x2])
    found = to_numpy([y1, y2, coupling.f(x1), coupling.g(y2)])
    np.testing.assert_allclose(found[0], x1 + found[3], atol=1e-6)
    np.testing.assert_allclose(found[1], x2 + found[2], atol=1e-6)


def test_affine_coupling_computes_its_equations():
    f, g = layers.Dense(6), layers.Dense(6)
    coupling = AffineCoupling(f, g, clamp=0.8)
    x = batch(5, 6)
    y = to_numpy([coupling(x)])[0]

    def scale(u):
        return np.exp(u / np.sqrt(1 + (u / 0.8) ** 2))

    value = to_numpy([f(x[:, 3:])])[0]
    y1 = scale(value[:, :3]) * x[:, :3] + value[:, 3:]
    value = to_numpy([g(y1)])[0]
    y2 = scale(value[:, :3]) * x[:, 3:] + value[:, 3:]
    np.testing.assert_allclose(y, np.concatenate([y1, y2], 1), rtol=1e-4)


def test_momentum_coupling_computes_its_equations():
    f = layers.Dense(3, "tanh")
    x, v = batch(5, 3), batch(5, 3) + 1
    m = np.float32(0.6)
    new_x, new_v = to_numpy(MomentumCoupling(f, m)([x, v]))
    expected = m * v + (1 - m) * to_numpy([f(x)])[0]
    np.testing.assert_allclose(new_v, expected, rtol=1e-5)
    np.testing.assert_allclose(new_x, x + expected, rtol=1e-5)


def test_pitfall_11_affine_scale_is_bounded_where_its_raw_value_is_not():
    class Huge(layers.Layer):
        """The raw scale is far below zero, where a sigmoid would be zero."""

        def call(self, x):
            return ops.concatenate([1e4 * x - 1e6, x], axis=-1)

    inputs = keras.Input((8,))
    run = ReversibleSequence([AffineCoupling(Huge(), Huge(), clamp=0.5)] * 2)
    model = keras.Model(inputs, run(inputs))
    x = batch(4, 8)
    y, (d_x,), _ = gradients(model, [x], LAST)
    assert np.all(np.isfinite(y[0])) and np.all(np.isfinite(d_x))
    # Four half steps divide by no less than exp(-0.5) each.
    assert np.all(np.abs(y[0]) < 4 * np.abs(x).max() * np.exp(2))
    np.testing.assert_allclose(
        to_numpy([run.inverse(run(x))])[0], x, rtol=1e-4, atol=1e-5
    )


def test_pitfall_11_momentum_close_to_zero_and_to_one():
    for momentum in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1, both excluded"):
            MomentumCoupling(layers.Dense(3), momentum)
    for momentum in (0.05, 0.999):
        layer = MomentumCoupling(layers.Dense(4, "tanh"), momentum)
        x = batch(4, 8)
        again = to_numpy([layer.inverse(layer(x))])[0]
        # One block divides the rounding error by no less than the momentum.
        np.testing.assert_allclose(again, x, atol=1e-6 / momentum)


def test_configs_round_trip():
    dense = layers.Dense(4)
    for layer in (
        AffineCoupling(layers.Dense(8), layers.Dense(8), clamp=0.3, axis=1),
        MomentumCoupling(dense, 0.4, axis=1),
        ReversibleSequence([AdditiveCoupling(dense)], False, True, True),
    ):
        config = layer.get_config()
        again = type(layer).from_config(config)
        assert again.get_config() == config == layer.get_config()
    assert (again.reversible, again.exact, again.scan) == (False, True, True)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`clamp` must be above 0"):
        AffineCoupling(layers.Dense(8), layers.Dense(8), clamp=0)
    with pytest.raises(TypeError, match="`g` must be a `keras.layers.Layer`"):
        AffineCoupling(layers.Dense(8), "dense")
    with pytest.raises(TypeError, match="`f` must be a `keras.layers.Layer`"):
        MomentumCoupling("relu")
    with pytest.raises(ValueError, match=r"shape \(2, 6\).*returns \(2, 3\)"):
        AffineCoupling(layers.Dense(3), layers.Dense(6))(batch(2, 6))
    with pytest.raises(ValueError, match="both of the same shape"):
        MomentumCoupling(layers.Dense(3))(batch(2, 7))


def test_a_coupling_of_ones_own_must_be_whole():
    with pytest.raises(NotImplementedError, match="must define `couple"):
        ReversibleLayer()(batch(2, 6))

    class Lopsided(AdditiveCoupling):
        pull_back = ReversibleLayer.pull_back

        def uncouple(self, streams, evaluate):
            return streams

    class Forgetful(AdditiveCoupling):
        def pull_back(self, outputs, cotangents, vjp):
            return outputs, cotangents

    for coupling in (Lopsided, Forgetful):
        inputs = keras.Input((8,))
        layer = coupling(layers.Dense(4), layers.Dense(4))
        with pytest.raises(ValueError, match="as often as `couple` does"):
            gradients(keras.Model(inputs, layer(inputs)), [batch(2, 8)])


def test_three_streams_of_different_shapes(float64):
    class Ring(ReversibleLayer):
        def __init__(self):
            super().__init__()
            self.to = [ExactDense(n) for n in (2, 3, 4)]

        def couple(self, streams, evaluate):
            x, y, z = streams
            x = x + evaluate(self.to[0], ops.concatenate([y, z], -1))
            y = y + evaluate(self.to[1], z)
            return x, y, z + evaluate(self.to[2], ops.concatenate([x, y], -1))

        def uncouple(self, streams, evaluate):
            x, y, z = streams
            z = z - evaluate(self.to[2], ops.concatenate([x, y], -1))
            y = y - evaluate(self.to[1], z)
            return x - evaluate(self.to[0], ops.concatenate([y, z], -1)), y, z

    inputs = [keras.Input((n,)) for n in (2, 3, 4)]
    run = ReversibleSequence([Ring(), Ring()])
    model = keras.Model(inputs, run(inputs))
    x = [batch(5, n, dtype="float64") for n in (2, 3, 4)]
    ours = gradients(model, x)
    run.reversible = False
    for a, b in zip(ours, gradients(model, x)):
        assert max(relative_errors(a, b)) < 1e-12
    for a, b in zip(to_numpy(run.inverse(run(x))), x):
        np.testing.assert_allclose(a, b, atol=1e-13)
