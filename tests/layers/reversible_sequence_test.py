import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from tests.gradients import ENDS
from tests.gradients import GRAPH
from tests.gradients import MODES
from tests.gradients import fit_mode
from tests.gradients import gradient_step
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import first
from tests.twins import ExactDense
from tests.twins import batch
from tests.twins import couplings
from tests.twins import exact_couplings
from tests.twins import function
from tests.twins import twins

# `fit` below tries the mode in between, with Keras' layers; JAX has no other.
CASES = [(True, mode) for mode in ENDS]
if keras.config.backend() != "jax":
    CASES.append((False, MODES[0]))


@pytest.mark.parametrize("exact, mode", CASES)
def test_pitfall_05_gradients_and_state_equal_those_of_the_plain_twin(
    exact, mode, float64, full_compiler
):
    arguments = (exact_couplings, ExactDense) if exact else ()
    rtol = 1e-10 if exact or keras.config.backend() == "tensorflow" else 1e-3
    model, plain = twins(*arguments)
    steps = [gradient_step(m, mode) for m in (model, plain)]
    x = batch(16, 8, dtype="float64")
    for _ in range(2):  # twice: seeds and statistics move on alike
        results = []
        for step in steps:
            keras.utils.set_random_seed(1)
            results.append(step([x]))
        for ours, theirs in zip(*results):
            for a, b in zip(ours, theirs, strict=True):
                # The gradient of a bias before BatchNormalization is zero: it
                # has no size of its own for an error to be relative to.
                size = 1 + np.linalg.norm(b)
                assert np.linalg.norm(a - b) <= rtol * size
    state = to_numpy(model.non_trainable_variables)
    for a, b in zip(state, to_numpy(plain.non_trainable_variables)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    initial = to_numpy(twins(*arguments)[0].non_trainable_variables)
    moved = [np.any(a != b) for a, b in zip(state, initial)]
    # On PyTorch unseeded layers leave their seeds for the global generator.
    assert any(moved) and (keras.config.backend() == "torch" or all(moved))


@pytest.mark.quick
def test_gradients_equal_finite_differences(float64):
    def blocks():
        dense = keras.Sequential([ExactDense(5), ExactDense(4)])
        return [AdditiveCoupling(dense, ExactDense(4)), AdditiveCoupling(dense)]

    model, _ = twins(blocks, ExactDense)
    x, epsilon = batch(2, 8, dtype="float64"), 1e-6
    _, (d_x,), d_params = gradients(model, [x])

    def total(x):
        return np.sum(to_numpy([model(x, training=True)])[0] ** 2)

    direction = batch(2, 8, dtype="float64")[::-1]
    slope = total(x + epsilon * direction) - total(x - epsilon * direction)
    np.testing.assert_allclose(
        slope / (2 * epsilon), np.sum(d_x * direction), rtol=1e-7
    )
    for variable, d in zip(model.trainable_variables, d_params, strict=True):
        value, direction = ops.convert_to_numpy(variable), np.cos(d + 1)
        variable.assign(value + epsilon * direction)
        slope = total(x)
        variable.assign(value - epsilon * direction)
        slope -= total(x)
        variable.assign(value)
        np.testing.assert_allclose(
            slope / (2 * epsilon), np.sum(d * direction), rtol=1e-6, atol=1e-8
        )


def test_pitfall_09_fit_equals_that_of_the_plain_twin():
    histories, weights = [], []
    x, y = batch(48, 8), batch(48, 3)
    for model in twins():
        model.compile(keras.optimizers.SGD(0.01), "mse", **fit_mode(GRAPH))
        keras.utils.set_random_seed(1)
        history = model.fit(x, y, 16, epochs=3, shuffle=False, verbose=0)
        histories.append(history.history["loss"])
        weights.append(to_numpy(model.weights))
        if len(weights) == 1:  # the reversible one
            assert model.evaluate(x, y, verbose=0) < histories[-1][0]
            assert model.predict(x, verbose=0).shape == (48, 3)
    np.testing.assert_allclose(*histories, rtol=1e-4)
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_pitfall_15_losses_of_sub_layers_are_counted_once():
    model, plain = twins()
    x = batch(16, 8)
    found = []
    for m in (model, plain):
        keras.utils.set_random_seed(1)
        m(x, training=True)
        found.append(float(sum(m.losses)))
    assert found[0] > 0
    np.testing.assert_allclose(*found, rtol=1e-5)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Unbuilt(layers.Layer):
    """A sub-layer that has no `build` of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.run = ReversibleSequence(
            [AdditiveCoupling(Unbuilt(), layers.Dense(4)) for _ in range(3)]
        )
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        return self.head(self.run(x, training=training))


@pytest.mark.parametrize("kind", first("subclassed", "sequential"))
def test_other_kinds_of_model_train(kind):
    model = Subclassed()
    if kind == "sequential":
        model = keras.Sequential(
            [AdditiveCoupling(function(), function()), layers.Dense(3)]
        )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = batch(32, 8), batch(32, 3)
    losses = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_each_sub_layer_is_evaluated_twice_a_step():
    count = 0

    class Counting(layers.Layer):
        def call(self, x):
            nonlocal count
            count += 1
            return ops.tanh(x)

    inputs = keras.Input((8,))
    run = ReversibleSequence([AdditiveCoupling(Counting(), Counting())] * 3)
    model = keras.Model(inputs, run(inputs))
    if keras.config.backend() == "jax":
        pytest.skip("JAX traces: Python does not see the evaluations.")
    count = 0
    gradients(model, [batch(2, 8)], "eager")
    assert count == 2 * 6


def test_a_nested_run_and_a_pair_of_streams(float64):
    inner = ReversibleSequence(exact_couplings()[:2])
    inputs = [keras.Input((4,)), keras.Input((4,))]
    run = ReversibleSequence([inner, AdditiveCoupling(ExactDense(4))])
    model = keras.Model(inputs, run(inputs))
    pair = [batch(6, 4, dtype="float64"), batch(6, 4, dtype="float64") + 1]
    results = []
    for reversible in (True, False):
        state = to_numpy(model.non_trainable_variables)
        run.reversible = reversible
        keras.utils.set_random_seed(1)
        results.append(gradients(model, pair))
        for variable, value in zip(model.non_trainable_variables, state):
            variable.assign(value)
    for ours, theirs in zip(*results):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    outputs = run(pair)
    assert isinstance(outputs, list)
    for x, again in zip(pair, to_numpy(run.inverse(outputs))):
        np.testing.assert_allclose(again, x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("half", [False, True])
def test_inverse_returns_the_inputs_along_any_axis(half):
    def conv():
        return layers.Conv1D(6, 3, padding="same", activation="tanh")

    run = ReversibleSequence(
        [
            AdditiveCoupling(conv(), None if half else conv(), axis=1)
            for _ in range(4)
        ]
    )
    x = batch(2, 10, 6)
    y = run(x)
    assert tuple(y.shape) == x.shape
    assert np.max(np.abs(to_numpy([y])[0] - x)) > 0.1
    np.testing.assert_allclose(to_numpy([run.inverse(y)])[0], x, atol=1e-5)


def test_inverse_needs_a_built_layer():
    run = ReversibleSequence([AdditiveCoupling(layers.Dense(4))])
    with pytest.raises(ValueError, match="has to be built before `inverse`"):
        run.inverse(batch(2, 8))


def test_pitfall_18_saved_model_and_weights_serve_both_twins(tmp_path):
    model, plain = twins()
    x = batch(4, 8)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    assert len(loaded.weights) == len(model.weights)

    for variable in plain.trainable_variables:
        variable.assign(variable + 1)
    model.save_weights(tmp_path / "run.weights.h5")
    plain.load_weights(tmp_path / "run.weights.h5")
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-5)
    assert [v.shape for v in model.weights] == [v.shape for v in plain.weights]


def test_pitfall_18_a_clone_takes_the_weights():
    model, _ = twins(lambda: [AdditiveCoupling(function(), function())])
    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    x = batch(4, 8)
    np.testing.assert_array_equal(
        copied.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_streams_stay_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        seen = []

        class Spy(layers.Layer):
            def call(self, x):
                seen.append(keras.backend.standardize_dtype(x.dtype))
                return x

        def blocks():
            sub = [Spy(), layers.Dense(16, "gelu"), layers.Dense(4)]
            return [AdditiveCoupling(keras.Sequential(sub)) for _ in range(4)]

        model, plain = twins(blocks)
        assert set(seen) == {"bfloat16"}
        run = model.layers[2]
        assert run.output.dtype == "float32"
        y = run(ops.cast(batch(4, 8), "bfloat16"))
        assert keras.backend.standardize_dtype(y.dtype) == "float32"
        assert all(v.dtype == "float32" for v in model.weights)
        (ours, theirs) = (gradients(m, [batch(64, 8)]) for m in (model, plain))
        for a, b in zip(ours[2], theirs[2], strict=True):
            assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_frozen_sub_layer_gets_no_gradient_and_passes_one_on():
    model, _ = twins()
    frozen = model.layers[2].blocks[0]
    frozen.trainable = False
    _, (d_x,), d_params = gradients(model, [batch(4, 8)])
    assert len(d_params) == len(model.trainable_variables)
    assert np.all(np.isfinite(d_x)) and np.any(d_x != 0)
    assert all(np.all(np.isfinite(d)) for d in d_params)


def test_pitfall_07_inputs_and_outputs_are_left_alone():
    model, _ = twins(lambda: couplings()[:1])
    run = model.layers[2]
    x = ops.convert_to_tensor(batch(4, 8))
    y = run(x, training=True)
    before = to_numpy([y])[0].copy()
    gradients(keras.Model(model.input, run.output), [x])
    np.testing.assert_array_equal(to_numpy([x])[0], batch(4, 8))
    np.testing.assert_array_equal(to_numpy([y])[0], before)


def test_bad_blocks_are_refused():
    with pytest.raises(ValueError, match="must hold at least one layer"):
        ReversibleSequence([])
    with pytest.raises(TypeError, match="must be reversible layers.*Dense"):
        ReversibleSequence([layers.Dense(4)])
    blocks = [AdditiveCoupling(layers.Dense(4), axis=a) for a in (1, -1)]
    with pytest.raises(
        ValueError, match=r"same `axis`. Received: axes \[1, -1\]"
    ):
        ReversibleSequence(blocks)
