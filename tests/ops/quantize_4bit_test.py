import hypothesis
import keras
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from keras_efficient.ops import dequantize_4bit
from keras_efficient.ops import quantize_4bit
from tests.compilers import compiled

FLOAT32_TINY = 2.0**-126  # below, hardware may round to zero
FLOAT32_EPS = 2.0**-23


@compiled
def round_trip(x, noise):
    tensors = quantize_4bit(x, noise)
    return tensors, dequantize_4bit(*tensors)


def quantize(x, noise=0.5):
    """Return codes (one byte each), low, high and the decoded tensor."""
    arguments = [keras.ops.convert_to_tensor(a, "float32") for a in (x, noise)]
    tensors, decoded = round_trip(*arguments)
    dtypes = [keras.backend.standardize_dtype(y.dtype) for y in tensors]
    assert dtypes == ["uint8", "bfloat16", "bfloat16"]
    decoded = keras.ops.convert_to_numpy(decoded)
    assert decoded.dtype == "float32"
    codes, low, high = map(keras.ops.convert_to_numpy, tensors)
    assert codes.shape == (x.shape[0], x.shape[1] // 2)
    assert low.shape == high.shape == (x.shape[0], 1)
    codes = np.concatenate([codes >> 4, codes & 15], axis=-1)
    return codes, low.astype("float64"), high.astype("float64"), decoded


def round_to_bfloat16(x):
    """Round to eight binary digits, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(x, "float32"))
    return np.ldexp(np.rint(mantissa * 2**8) / 2**8, exponent)


def normal(*shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype("float32")


def check_round_trip(x):
    """Entries lie between the bounds and decode to the nearest step."""
    codes, low, high, decoded = quantize(x)
    size = np.maximum(np.abs(low), np.abs(high))
    assert (low <= x + FLOAT32_TINY).all() and (x <= high + FLOAT32_TINY).all()
    # no wider than bfloat16 needs
    assert (x.min(-1, keepdims=True) - low <= 2**-6 * size).all()
    assert (high - x.max(-1, keepdims=True) <= 2**-6 * size).all()
    unit = (high - low) / 15
    rounding_error = 4 * FLOAT32_EPS * size + 16 * FLOAT32_TINY
    assert (np.abs(decoded - (low + codes * unit)) <= rounding_error).all()
    assert (np.abs(decoded - x) <= unit / 2 + rounding_error).all()


@pytest.mark.parametrize("bucket_size", [2, 64])
def test_equations(bucket_size):
    x = normal(50, bucket_size)
    codes, low, high, decoded = quantize(x)
    x = x.astype("float64")
    for entries, code, low_b, high_b in zip(x, codes, low, high, strict=True):
        lowest, highest = entries.min(), entries.max()
        assert low_b == round_to_bfloat16(lowest - abs(lowest) / 256)
        assert high_b == round_to_bfloat16(highest + abs(highest) / 256)
        unit = (high_b - low_b) / 15
        steps = (entries - low_b) / unit
        assert np.abs(steps % 1 - 0.5).min() > 1e-5  # no ties in this data
        np.testing.assert_array_equal(code, np.floor(steps + 0.5))
    check_round_trip(x.astype("float32"))


def test_noise_is_added_before_rounding_down():
    x = normal(50, 64)
    noise = np.random.default_rng(1).uniform(size=x.shape).astype("float32")
    codes, low, high, _ = quantize(x, noise)
    steps = (x - low) / ((high - low) / 15) + noise
    assert np.abs(steps - np.rint(steps)).min() > 1e-5
    np.testing.assert_array_equal(codes, np.floor(steps))
    assert codes.max() <= 15


def test_largest_noise_leaves_the_largest_entry_in_its_code():
    x = np.tile([[-0.25, 1.0]], (3, 4)).astype("float32")
    codes, low, high, decoded = quantize(x, np.float32(1 - 2**-24))
    # bounds without a margin, and 15 + noise rounds to 16
    assert (low == -0.25).all() and (high == 1).all()
    assert codes.max() == 15
    np.testing.assert_allclose(decoded[:, 1::2], 1.0, rtol=1e-6)


def test_uniform_noise_has_no_bias():
    draws = 20_000
    x = np.tile([[-1.0, 0.01, 0.2, 0.013, 0.5, 1.0]], (draws, 1))
    noise = np.random.default_rng(0).uniform(size=x.shape).astype("float32")
    _, low, high, decoded = quantize(x.astype("float32"), noise)
    unit = ((high - low) / 15)[0]
    error = (decoded - x).mean(axis=0)
    assert (np.abs(error) < 5 * (unit / 2) / draws**0.5).all()
    _, _, _, nearest = quantize(x.astype("float32"))
    assert np.abs(nearest - x).mean(axis=0).max() > 0.2 * unit


def test_two_codes_share_a_byte():
    x = np.arange(16, dtype="float32")[None] - 7.5
    x = x[:, [3, 15, 0, 9, 12, 5, 1, 8, 2, 7, 14, 4, 6, 10, 13, 11]]
    codes, *_ = compiled(quantize_4bit)(keras.ops.convert_to_tensor(x))
    first, second = (x[0, :8] + 7.5), (x[0, 8:] + 7.5)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(codes)[0], 16 * first + second
    )


def test_zero_bucket_is_exact():
    for noise in (0.0, 0.5, np.float32(1 - 2**-24)):
        codes, low, high, decoded = quantize(np.zeros((3, 8), "float32"), noise)
        assert not (codes.any() or low.any() or high.any() or decoded.any())


@pytest.mark.parametrize("constant", [1.0, -1.0, 3e-9, -7e12, 1e38, -1e38])
def test_constant_bucket(constant):
    x = np.full((3, 8), constant, "float32")
    check_round_trip(x)
    *_, decoded = quantize(x)
    np.testing.assert_allclose(decoded, x, rtol=1e-3)


@pytest.mark.parametrize(
    "bucket",
    [
        [-1e38, 1e38, 0.0, 1.0],
        [1e-30, 1e30, -1e-30, 3e29],
        [1e-37, 2e-37, -1e-37, 0.0],
        [2e-38, 3e-38, 2.5e-38, 2e-38],
        [1e-45, 1e-39, -1e-40, 5e-39],
        [1e-45, 1.0, -1e-40, 0.3],
        [1.0, np.nextafter(np.float32(1), np.float32(2)), 1.0, 1.0],
    ],
)
def test_extreme_buckets(bucket):
    check_round_trip(np.resize(np.array(bucket, "float32"), (3, 8)))


def test_bounds_enclose_every_mantissa():
    bits = np.arange(2**23, dtype="int32") + np.float32(1).view("int32")
    # around each tie between two bfloat16 numbers, margin included or not
    near = [np.arange(2**23 // 2**15) * 2**15 + d for d in range(-200, 200)]
    x = bits[np.concatenate(near) % 2**23].view("float32")
    x = np.concatenate([x, normal(64)])[: x.size // 64 * 64].reshape(-1, 1)
    x = np.concatenate([x, -x], axis=-1)
    _, low, high, _ = quantize(x)
    assert (low <= x).all() and (x <= high).all()


@hypothesis.given(
    arrays.arrays(
        "float32",
        (3, 8),
        elements={"min_value": -(2.0**126), "max_value": 2.0**126},
    )
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_round_trip_of_anything(x):
    check_round_trip(x)


def test_computes_with_the_bounds_that_it_returns(monkeypatch):
    """XLA on GPU leaves out casts to bfloat16 and back."""
    x = normal(50, 64)
    codes, low, high, _ = quantize(x)
    cast = keras.ops.cast
    monkeypatch.setattr(
        keras.ops, "cast", lambda x, d: x if d == "bfloat16" else cast(x, d)
    )
    tensors = compiled(quantize_4bit)(keras.ops.convert_to_tensor(x))
    actual_codes, *bounds = map(keras.ops.convert_to_numpy, tensors)
    np.testing.assert_array_equal(actual_codes >> 4, codes[:, :32])
    np.testing.assert_array_equal(actual_codes & 15, codes[:, 32:])
    np.testing.assert_array_equal(bounds, [low, high])
