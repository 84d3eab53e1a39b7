import functools
import math

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from keras import ops

from keras_efficient.ops import dequantize_4bit
from keras_efficient.ops import ld_adam_step
from tests.compilers import compiled

SHAPES = [(1,), (123,), (64, 48), (48, 64), (3, 3, 5, 7), (65, 129)]
OPTIONS = {"beta_1": 0.9, "beta_2": 0.99, "rho": 0.8, "epsilon": 1e-7}
BUCKET_SIZE = 64


class Oracle:
    """The equations in float64, for matrices as they stand.

    Matrices with more rows than columns are projected from the right, instead
    of being transposed.
    """

    def __init__(self, shape, projector):
        self.shape = shape
        self.is_wide = math.prod(shape[:-1]) <= shape[-1]
        rank = projector.shape[1]
        long = max(math.prod(shape[:-1]), shape[-1])
        self.p = projector.astype("float64")
        self.m = np.zeros((rank, long) if self.is_wide else (long, rank))
        self.s = np.zeros_like(self.m)

    def project(self, p, x):
        return p.T @ x if self.is_wide else x @ p

    def lift(self, p, x):
        return p @ x if self.is_wide else x @ p.T

    def rotate(self, rotation, x):
        return rotation @ x if self.is_wide else x @ rotation.T

    def step(self, gradient, error, t, beta_1, beta_2, rho, epsilon):
        """Return the update and the new error feedback."""
        a = gradient.astype("float64") + error
        a = a.reshape(-1, self.shape[-1])
        m_hat = s_hat = 0 * self.m
        if t > 1:
            m_hat = self.m / (1 - beta_1 ** (t - 1))
            s_hat = self.s / (1 - beta_2 ** (t - 1))
        b = rho * self.lift(self.p, m_hat) + (1 - rho) * a
        b_t = b if self.is_wide else b.T
        p = np.linalg.qr(b_t @ (b_t.T @ self.p))[0]

        rotation = p.T @ self.p
        m = self.rotate(rotation, self.m)
        variance = self.rotate(rotation**2, s_hat - m_hat**2)
        s = np.abs(variance + self.rotate(rotation, m_hat) ** 2)
        s = (1 - beta_2 ** (t - 1)) * s

        g = self.project(p, a)
        error = a - self.lift(p, g)
        lost = self.lift(self.p, self.m) - self.lift(p, m)
        error = error + beta_1 / (1 - beta_1) * lost

        self.p = p
        self.m = beta_1 * m + (1 - beta_1) * g
        self.s = beta_2 * s + (1 - beta_2) * g**2
        ratio = self.m / (1 - beta_1**t)
        ratio = ratio / (np.sqrt(self.s / (1 - beta_2**t)) + epsilon)
        update = self.lift(p, ratio)
        return update.reshape(self.shape), error.reshape(self.shape)


@functools.cache
def stepper(**options):
    options = {**OPTIONS, **options}
    return compiled(
        lambda gradient, state, step: ld_adam_step(
            gradient, state, step, **options
        )
    )


def run_step(gradient, state, step, **options):
    """Check shapes and dtypes; return the update and the new state."""
    gradient = ops.convert_to_tensor(gradient)
    step = ops.cast(step, "int32")
    update, new_state = stepper(**options)(gradient, state, step)
    assert len(state) == len(new_state)
    for old, new in zip(state, new_state, strict=True):
        assert tuple(old.shape) == tuple(new.shape)
        assert dtype_of(old) == dtype_of(new)
    assert dtype_of(update) == "float32"
    assert tuple(update.shape) == tuple(gradient.shape)
    return ops.convert_to_numpy(update), new_state


def dtype_of(x):
    return keras.backend.standardize_dtype(x.dtype)


def sides(shape):
    return sorted((math.prod(shape[:-1]), shape[-1]))


def orthonormal(rows, columns, seed=0):
    return np.linalg.qr(normal(rows, columns, seed=seed))[0].astype("float32")


def first_state(shape, rank, error_feedback="off", projector=None):
    short, long = sides(shape)
    if projector is None:
        projector = orthonormal(short, rank)
    buckets = math.ceil(math.prod(shape) / BUCKET_SIZE)
    slots = [((rank, long), "float32")] * 2
    slots += {
        "off": [],
        "full": [(shape, "float32")],
        "quantized": [
            ((buckets, BUCKET_SIZE // 2), "uint8"),
            ((buckets, 1), "bfloat16"),
            ((buckets, 1), "bfloat16"),
        ],
    }[error_feedback]
    zeros = (ops.convert_to_tensor(np.zeros(s), d) for s, d in slots)
    return (ops.convert_to_tensor(projector), *zeros)


def error_of(state, shape):
    """Return the error feedback in float64."""
    if len(state) == 3:
        return np.zeros(shape)
    if len(state) == 4:
        return ops.convert_to_numpy(state[3]).astype("float64")
    error = ops.convert_to_numpy(dequantize_4bit(*state[3:]))
    return error.reshape(-1)[: math.prod(shape)].reshape(shape)


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def low_rank_gradient(shape, step, rank=4):
    """A signal of few, slowly turning dimensions, and noise."""
    short, long = math.prod(shape[:-1]), shape[-1]
    u = normal(short, rank) + 0.1 * normal(short, rank, seed=[1, step])
    signal = u * np.geomspace(3, 1, rank, dtype="float32") @ normal(rank, long)
    noise = normal(short, long, seed=[2, step])
    return (signal + 0.3 * noise).reshape(shape)


def check_close(actual, expected, tolerance):
    """Compare relative to the largest entry."""
    scale = np.abs(expected).max() + 1e-30
    np.testing.assert_allclose(actual / scale, expected / scale, 0, tolerance)


# Against the oracle


@pytest.mark.parametrize("error_feedback", ["off", "full"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equations(shape, error_feedback):
    rank = min(4, sides(shape)[0])
    state = first_state(shape, rank, error_feedback)
    oracle = Oracle(shape, ops.convert_to_numpy(state[0]))
    error = np.zeros(shape)
    for step in range(1, 21):
        gradient = low_rank_gradient(shape, step)
        update, state = run_step(gradient, state, step)
        expected, error = oracle.step(gradient, error, step, **OPTIONS)
        check_close(update, expected, 2e-3)
        assert np.mean(np.abs(update - expected)) < 1e-4
        if error_feedback == "full":
            check_close(error_of(state, shape), error, 1e-4)
        else:
            error = 0 * error
        # P is unique up to the sign of its columns, its span is unique.
        p = ops.convert_to_numpy(state[0])
        check_close(p @ p.T, oracle.p @ oracle.p.T, 1e-4)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantized_error_feedback(shape, rounding):
    """Step by step, each from the rounded error of the last."""
    rank = min(4, sides(shape)[0])
    state = first_state(shape, rank, "quantized")
    oracle = Oracle(shape, ops.convert_to_numpy(state[0]))
    largest = {"nearest": 0.5, "stochastic": 1.0}[rounding]
    for step in range(1, 21):
        gradient = low_rank_gradient(shape, step)
        fed_back = error_of(state, shape)
        update, state = run_step(gradient, state, step, rounding=rounding)
        expected, error = oracle.step(gradient, fed_back, step, **OPTIONS)
        check_close(update, expected, 2e-3)
        low, high = (
            ops.convert_to_numpy(x).astype("float64") for x in state[4:]
        )
        unit = np.repeat((high - low) / 15, BUCKET_SIZE)[: error.size]
        off = np.abs(error_of(state, shape) - error).reshape(-1)
        assert (off <= (largest + 1e-2) * unit + 1e-5).all()
        if rounding == "stochastic" and error.size > 1000:
            assert (off > 0.6 * unit).any()


def test_seeds_and_steps_draw_other_numbers():
    shape, codes = (64, 48), []
    for seed, step in ((0, 1), (0, 2), (1, 1)):
        state = first_state(shape, 4, "quantized")
        _, state = run_step(normal(*shape), state, step, seed=seed)
        codes.append(ops.convert_to_numpy(state[3]))
    assert (codes[0] != codes[1]).any() and (codes[0] != codes[2]).any()


# What the equations say


def adam(gradients, beta_1, beta_2, epsilon, rho):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g.astype("float64")
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        v_hat = v / (1 - beta_2**t)
        yield m / (1 - beta_1**t) / (np.sqrt(v_hat) + epsilon)


@pytest.mark.parametrize("shape", [(1,), (123,), (1, 123), (123, 1)], ids=str)
def test_one_dimension_is_adam(shape):
    """A subspace of all one dimensions has nowhere to turn to."""
    gradients = [normal(*shape, seed=step) for step in range(20)]
    state = first_state(shape, 1, "full")
    for step, expected in enumerate(adam(gradients, **OPTIONS), start=1):
        update, state = run_step(gradients[step - 1], state, step)
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(error_of(state, shape), 0.0, atol=1e-5)


def test_scalar():
    state = (*map(ops.ones, [(1, 1)] * 3), ops.zeros(()))
    update, _ = run_step(np.float32(3), state, 1)
    assert update.shape == () and update > 0


@pytest.mark.parametrize("is_wide", [True, False])
def test_full_rank_is_adam_while_the_axes_stay(is_wide):
    """Rows that do not overlap are the singular vectors of all gradients."""
    gradients = []
    for step in range(20):
        gradient = np.zeros((4, 16), "float32")
        for row in range(4):
            place = slice(4 * row, 4 * row + 4)
            gradient[row, place] = normal(4, seed=[step, row])
        gradients.append(gradient if is_wide else gradient.T)
    shape = gradients[0].shape
    state = first_state(shape, 4, "full", projector=np.eye(4, dtype="float32"))
    for step, expected in enumerate(adam(gradients, **OPTIONS), start=1):
        update, state = run_step(gradients[step - 1], state, step)
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(error_of(state, shape), 0.0, atol=1e-5)


def test_full_rank_loses_nothing():
    """The axes turn, and Adam is not the same in all axes; the mean is."""
    state, mean = first_state((12, 30), 12, "full"), 0.0
    for step in range(1, 21):
        gradient = normal(12, 30, seed=step)
        _, state = run_step(gradient, state, step)
        mean = 0.9 * mean + 0.1 * gradient.astype("float64")
        p, m = map(ops.convert_to_numpy, state[:2])
        np.testing.assert_allclose(p @ m, mean, atol=1e-5)
        np.testing.assert_allclose(error_of(state, (12, 30)), 0.0, atol=1e-4)


def test_what_is_lost_is_fed_back():
    """sum g = sum P'P'^T a + e - b1/(1-b1) lost: nothing disappears."""
    shape = (30, 40)
    state, total, kept = first_state(shape, 3, "full"), 0.0, 0.0
    for step in range(1, 21):
        gradient, old = normal(*shape, seed=step), state
        _, state = run_step(gradient, state, step)
        p_old, m_old, _, e_old = (ops.convert_to_numpy(x) for x in old)
        p = ops.convert_to_numpy(state[0])
        total = total + gradient
        kept = kept + p @ p.T @ (gradient + e_old)
        kept = kept - 9 * (p_old @ m_old - p @ (p.T @ (p_old @ m_old)))
    np.testing.assert_allclose(kept + error_of(state, shape), total, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 5, 48])
def test_projector_is_orthonormal(rank):
    gradients = [
        normal(64, 48, seed=0),
        np.zeros((64, 48), "float32"),
        normal(64, 1) @ normal(1, 48),  # of rank 1
        normal(64, 48, seed=1) * np.geomspace(1e-15, 1, 48, dtype="float32"),
        1e-30 * normal(64, 48, seed=2),
        1e17 * normal(64, 48, seed=3),
        1e-45 * normal(64, 48, seed=4),
    ]
    state = first_state((64, 48), rank)
    for step, gradient in enumerate(gradients, start=1):
        _, state = run_step(gradient, state, step)
        p = ops.convert_to_numpy(state[0]).astype("float64")
        np.testing.assert_allclose(p.T @ p, np.eye(rank), atol=5e-6)


def test_projector_finds_the_largest_directions():
    shape, rank = (64, 96), 4
    u, v = orthonormal(64, 20, seed=1), orthonormal(96, 20, seed=2)
    gradient = u * np.geomspace(10, 0.01, 20, dtype="float32") @ v.T
    state = first_state(shape, rank)
    for step in range(1, 21):
        _, state = run_step(gradient, state, step)
    p = ops.convert_to_numpy(state[0])
    cosines = np.linalg.svd(p.T @ u[:, :rank])[1]
    np.testing.assert_allclose(cosines, 1.0, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e11])
def test_projector_follows_gradients_of_any_scale(scale):
    states = [first_state((64, 96), 4) for _ in range(2)]
    for step in range(1, 4):
        gradient = low_rank_gradient((64, 96), step)
        gradients = [gradient, gradient * np.float32(scale)]
        states = [
            run_step(gradient, state, step)[1]
            for gradient, state in zip(gradients, states, strict=True)
        ]
        p, scaled_p = (ops.convert_to_numpy(state[0]) for state in states)
        np.testing.assert_allclose(scaled_p @ scaled_p.T, p @ p.T, atol=1e-3)


def test_no_update_where_the_gradient_is_zero():
    """Dividing rounding errors by their size would make them updates."""
    gradient = 1e3 * normal(64, 1) @ normal(1, 48)
    state = first_state((64, 48), 5)
    for step in range(1, 6):
        update, state = run_step(gradient, state, step)
        _, sizes, _ = np.linalg.svd(update)
        assert 7 < sizes[0] < 9 and sizes[1] < 1e-4


def test_a_subspace_that_misses_the_gradient_is_left():
    """Rows that had no gradient before, and none of the projector."""
    state = first_state((64, 96), 4)
    gradient = np.zeros((64, 96), "float32")
    gradient[:32] = normal(32, 96)
    for step in range(1, 4):
        _, state = run_step(gradient, state, step)
    gradient = np.roll(gradient, 32, axis=0)
    for step in range(4, 9):
        update, state = run_step(gradient, state, step)
    assert np.abs(update[32:]).max() > 0.1


def test_half_precision_gradient_is_computed_in_float32():
    state = first_state((48, 64), 4)
    gradient = ops.cast(normal(48, 64), "bfloat16")
    half, _ = run_step(gradient, state, 1)
    full, _ = run_step(ops.cast(gradient, "float32"), state, 1)
    np.testing.assert_array_equal(half, full)


# Faults


@pytest.mark.parametrize("error_feedback", ["off", "full", "quantized"])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf, 3e38])
def test_faulty_entry_counts_as_zero(fault, error_feedback):
    states = [first_state((48, 64), 4, error_feedback)] * 2
    for step in range(1, 5):
        gradients = [normal(48, 64, seed=step) for _ in range(2)]
        if step == 2:
            for gradient, value in zip(gradients, (fault, 0.0), strict=True):
                gradient[[3, 47], 5] = value
        if step == 3:
            gradients = [np.full((48, 64), x, "float32") for x in (fault, 0)]
        results = [
            run_step(gradient, state, step)
            for gradient, state in zip(gradients, states, strict=True)
        ]
        states = [state for _, state in results]
        np.testing.assert_equal(results[0][0], results[1][0])
        for actual, expected in zip(*states, strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(actual), ops.convert_to_numpy(expected)
            )


@pytest.mark.parametrize("error_feedback", ["off", "full", "quantized"])
def test_zero_gradients_move_nothing(error_feedback):
    state = first_state((48, 64), 4, error_feedback)
    p = ops.convert_to_numpy(state[0])
    for step in range(1, 4):
        update, state = run_step(np.zeros((48, 64), "float32"), state, step)
        assert not update.any() and not error_of(state, (48, 64)).any()
    # and the subspace stays
    new_p = ops.convert_to_numpy(state[0])
    np.testing.assert_allclose(new_p @ new_p.T, p @ p.T, atol=1e-5)


@hypothesis.given(
    error_feedback=strategies.sampled_from(["off", "full", "quantized"]),
    shape=strategies.sampled_from([(1,), (9, 7)]),
    exponents=strategies.lists(
        strategies.integers(-45, 39), min_size=3, max_size=3
    ),
    faults=strategies.lists(
        strategies.tuples(
            strategies.integers(0, 10**6),
            strategies.sampled_from(
                [np.nan, np.inf, -np.inf, 3.4e38, -9.9e17, 1e-45, 0.0]
            ),
        ),
        max_size=8,
    ),
)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_nothing_that_is_not_finite_enters_the_state(
    error_feedback, shape, exponents, faults
):
    state = first_state(shape, min(3, sides(shape)[0]), error_feedback)
    for step, exponent in enumerate(exponents, start=1):
        with np.errstate(over="ignore", under="ignore"):
            gradient = normal(*shape).astype("float64") * 10.0**exponent
            gradient = gradient.astype("float32")
        for place, fault in faults:
            gradient.reshape(-1)[place % gradient.size] = fault
        update, state = run_step(gradient, state, step)
        assert np.isfinite(update).all()
        for slot in state:
            slot = ops.convert_to_numpy(slot).astype("float64")
            assert np.isfinite(slot).all()
        assert np.isfinite(error_of(state, shape)).all()


@pytest.mark.parametrize("error_feedback", ["full", "quantized"])
def test_huge_gradients_for_many_steps(error_feedback):
    # The square of a projected column is beyond float32.
    state = first_state((512, 600), 2, error_feedback)
    for step in range(1, 11):
        gradient = np.full((512, 600), 9e17, "float32")
        update, state = run_step(gradient, state, step)
        assert np.isfinite(update).all()
        for slot in state:
            slot = ops.convert_to_numpy(slot).astype("float64")
            assert np.isfinite(slot).all()


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="On JAX all the tests above are compiled.",
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_step_is_the_step(jit_compile):
    import tensorflow as tf

    step_fn = tf.function(
        lambda *args: ld_adam_step(*args, **OPTIONS), jit_compile=jit_compile
    )
    expected_state = state = first_state((65, 129), 4, "full")
    for step in range(1, 6):
        gradient = tf.constant(low_rank_gradient((65, 129), step))
        update, state = step_fn(gradient, state, tf.constant(step))
        expected, expected_state = run_step(gradient, expected_state, step)
        check_close(update, expected, 2e-3)
        p = state[0].numpy()
        np.testing.assert_allclose(p.T @ p, np.eye(4), atol=1e-5)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="for XLA on TensorFlow"
)
def test_compiled_projector_is_orthonormal_for_any_scale_of_columns():
    import tensorflow as tf

    step_fn = tf.function(ld_adam_step, jit_compile=True)
    u, v = orthonormal(64, 16, seed=1), orthonormal(96, 16, seed=2)
    gradient = u * np.geomspace(1, 1e-18, 16, dtype="float32") @ v.T
    state = first_state((64, 96), 16, projector=u)
    _, state = step_fn(tf.constant(gradient), state, tf.constant(1))
    p = state[0].numpy()
    np.testing.assert_allclose(p.T @ p, np.eye(16), atol=1e-5)
