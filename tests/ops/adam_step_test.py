import keras
import numpy as np
import pytest

from keras_efficient.ops import adam_step


def adam_oracle(gradients, beta_1, beta_2, epsilon):
    """Adam in float64; yields what each step returns."""
    m = v = np.zeros_like(gradients[0], dtype="float64")
    for t, g in enumerate(gradients, start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)
        yield m_hat / (np.sqrt(v_hat) + epsilon), m, v


def run(gradients, **options):
    """Yield what `adam_step` returns for each gradient, as NumPy arrays."""
    m = v = keras.ops.convert_to_tensor(np.zeros_like(gradients[0]))
    for step, gradient in enumerate(gradients, start=1):
        update, m, v = adam_step(
            keras.ops.convert_to_tensor(gradient), m, v, step, **options
        )
        yield tuple(map(keras.ops.convert_to_numpy, (update, m, v)))


def normal(*shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype("float32")


# 1 - 0.999^t loses five of the seven digits of float32 when t is small.
@pytest.mark.parametrize(
    "shape, beta_1, beta_2, epsilon, rtol",
    [
        ((3, 5), 0.9, 0.999, 1e-7, 5e-5),
        ((3, 5), 0.0, 0.0, 1e-7, 2e-6),
        ((), 0.5, 0.9, 1e-2, 2e-6),
    ],
)
def test_equations(shape, beta_1, beta_2, epsilon, rtol):
    gradients = normal(12, *shape)
    options = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    actual = run(gradients, **options)
    expected = adam_oracle(gradients.astype("float64"), **options)
    for (u, m, v), (u_0, m_0, v_0) in zip(actual, expected, strict=True):
        np.testing.assert_allclose(u, u_0, rtol, atol=1e-6)
        np.testing.assert_allclose(m, m_0, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(v, v_0, rtol=2e-6, atol=1e-7)


def test_integer_tensor_as_step():
    gradient, zeros = keras.ops.ones((3, 5)), keras.ops.zeros((3, 5))
    step = keras.ops.cast(1, keras.optimizers.SGD().iterations.dtype)
    update, *_ = adam_step(gradient, zeros, zeros, step)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(update), 1.0, rtol=5e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradient_is_computed_in_float32(dtype):
    gradient = keras.ops.cast(normal(3, 5), dtype)
    zeros = keras.ops.zeros((3, 5))
    half = adam_step(gradient, zeros, zeros, 1)
    full = adam_step(keras.ops.cast(gradient, "float32"), zeros, zeros, 1)
    for actual, expected in zip(half, full, strict=True):
        assert keras.backend.standardize_dtype(actual.dtype) == "float32"
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(actual),
            keras.ops.convert_to_numpy(expected),
        )


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf, 3e38, -2e18])
def test_faulty_entry_counts_as_zero(fault):
    faulty, clean = normal(4, 3, 5), normal(4, 3, 5)
    faulty[1, 2, 0], clean[1, 2, 0] = fault, 0.0
    for actual, expected in zip(run(faulty), run(clean), strict=True):
        for a, b in zip(actual, expected, strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_array_equal(a, b)


def test_largest_gradient_leaves_everything_finite():
    for result in run(np.full((2, 3, 5), [9e17, -9e17, 0, 1, -1e9], "float32")):
        assert all(np.isfinite(x).all() for x in result)
