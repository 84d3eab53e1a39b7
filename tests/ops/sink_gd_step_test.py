import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import sink_gd_step
from tests.compilers import compiled

SHAPES = [(1,), (123,), (64, 48), (48, 64), (3, 3, 5, 7), (65, 129)]


def oracle(gradient, iterations):
    """Normalize a row and a column at a time, in float64."""
    x = gradient.astype("float64").reshape(-1, gradient.shape[-1])
    rows = [i for i in range(x.shape[0]) if x[i].any()]
    columns = [j for j in range(x.shape[1]) if x[:, j].any()]
    for _ in range(iterations):
        for i in rows:
            x[i] *= math.sqrt(len(columns)) / np.linalg.norm(x[i])
        for j in columns:
            x[:, j] *= math.sqrt(len(rows)) / np.linalg.norm(x[:, j])
    return x.reshape(gradient.shape)


@functools.cache
def stepper(iterations):
    return compiled(lambda gradient: sink_gd_step(gradient, iterations))


def step(gradient, iterations=5):
    update = stepper(iterations)(ops.convert_to_tensor(gradient))
    assert keras.backend.standardize_dtype(update.dtype) == "float32"
    assert tuple(update.shape) == tuple(gradient.shape)
    return ops.convert_to_numpy(update)


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def rms(x, axis):
    return np.sqrt(np.mean(np.square(x, dtype="float64"), axis=axis))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equations(shape):
    for seed in range(20):
        gradient = normal(*shape, seed=seed)
        np.testing.assert_allclose(
            step(gradient), oracle(gradient, 5), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_number_of_iterations(iterations):
    scales = np.geomspace(1e-3, 1e3, 48, dtype="float32")
    gradient = normal(64, 48) * scales
    np.testing.assert_allclose(
        step(gradient, iterations),
        oracle(gradient, iterations),
        rtol=1e-4,
        atol=1e-5,
    )


def test_fixed_point():
    scales = np.geomspace(1e-3, 1e3, 48, dtype="float32")
    gradient = normal(64, 48) * scales
    errors = []
    for iterations in (1, 5, 20):
        x = step(gradient, iterations)
        np.testing.assert_allclose(rms(x, axis=0), 1.0, rtol=1e-5)
        errors.append(np.abs(rms(x, axis=1) - 1).max())
    assert errors[0] > 1e-2 and errors[1] < 1e-3 and errors[2] < 1e-5
    np.testing.assert_allclose(step(x), x, rtol=1e-4, atol=1e-5)


def test_signs_stay():
    gradient = normal(48, 64)
    np.testing.assert_array_equal(np.sign(step(gradient)), np.sign(gradient))


def test_a_vector_becomes_its_signs():
    for shape in ((), (123,), (123, 1), (1, 123)):
        gradient = np.asarray(normal(*shape), "float32")
        np.testing.assert_allclose(step(gradient), np.sign(gradient), rtol=1e-5)


def test_all_axes_but_the_last_are_rows():
    gradient = normal(3, 3, 5, 7)
    np.testing.assert_array_equal(
        step(gradient), step(gradient.reshape(45, 7)).reshape(3, 3, 5, 7)
    )


def test_empty_rows_and_columns_are_left_out():
    small = normal(5, 7)
    gradient = np.zeros((60, 11), "float32")
    gradient[np.ix_([1, 2, 30, 31, 59], range(2, 9))] = small
    expected = np.zeros_like(gradient)
    expected[np.ix_([1, 2, 30, 31, 59], range(2, 9))] = step(small)
    np.testing.assert_allclose(step(gradient), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step(gradient), oracle(gradient, 5), 1e-4, 1e-6)


def test_zeros_stay_zeros():
    for shape in SHAPES:
        assert not step(np.zeros(shape, "float32")).any()


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-10, 1e10, 1e17])
def test_scale_does_not_matter(scale):
    gradient = normal(48, 64)
    # All of them stay within the range of float32.
    gradient = np.sign(gradient) * np.clip(np.abs(gradient), 0.1, 3)
    np.testing.assert_allclose(
        step(gradient * np.float32(scale)), step(gradient), 1e-4, 1e-5
    )


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf, 3e38])
def test_faulty_entry_counts_as_zero(fault):
    faulty, clean = normal(48, 64), normal(48, 64)
    for gradient, value in ((faulty, fault), (clean, 0.0)):
        gradient[3, 5] = gradient[47, 63] = value
    np.testing.assert_array_equal(step(faulty), step(clean))
    assert not step(np.full((48, 64), fault, "float32")).any()


def test_extreme_entries_side_by_side():
    gradient = normal(48, 64)
    gradient[:, 3] = 1e17
    gradient[7] *= 1e-30
    gradient[9] = 1e-45
    gradient[:, 11] = 1e-44
    assert np.isfinite(step(gradient)).all()
    assert np.abs(step(gradient)).max() < 64


def test_half_precision_gradient_is_computed_in_float32():
    gradient = ops.cast(normal(48, 64), "bfloat16")
    half = stepper(5)(gradient)
    full = stepper(5)(ops.cast(gradient, "float32"))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
    np.testing.assert_array_equal(
        ops.convert_to_numpy(half), ops.convert_to_numpy(full)
    )


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="On JAX all the tests above are compiled.",
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_step_is_the_step(jit_compile):
    import tensorflow as tf

    step_fn = tf.function(sink_gd_step, jit_compile=jit_compile)
    for shape in SHAPES:
        gradient = normal(*shape)
        np.testing.assert_allclose(
            step_fn(tf.constant(gradient)), step(gradient), 1e-5, 1e-6
        )
