"""Weights of 16 bits and their corrections against arithmetic in float64."""

import functools

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops.weight_rounding import join_weight
from keras_efficient.ops.weight_rounding import round_weight
from keras_efficient.ops.weight_rounding import split_weight
from tests.compilers import compiled

BACKEND = keras.config.backend()
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Bits of the fraction, and the least exponent.
SIZES = {"bfloat16": (7, -126), "float16": (10, -14)}
EDGES = {
    "bfloat16": [3.3895314e38, 3.3961775e38, 3.4028235e38, 1e-45, 9e-41],
    "float16": [65504, 65519.99, 65520, 65536, 1e9, 2**-24, 2**-25, 6.1e-5],
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@functools.cache
def program(fn, dtype=None):
    return compiled(functools.partial(fn, dtype=dtype) if dtype else fn, "xla")


def numbers(dtype):
    """Every kind of float32: each bit at random, weights, and the edges."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(-(2**31), 2**31, 20_000).astype("int32")
    weights = rng.normal(size=20_000) * 10.0 ** rng.uniform(-9, 4, 20_000)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, *EDGES[dtype]]
    edges = np.concatenate([edges, np.nextafter(np.float32(edges), 0)])
    return np.concatenate(
        [any_bits.view("float32"), weights, edges, -edges]
    ).astype("float32")


def to_numpy(x):
    """As it is, or in float32 for bfloat16."""
    return np.array(ops.convert_to_numpy(x)).astype("float64")


def unit(x, dtype):
    """The distance of 16-bit numbers around |x|, that below at a border."""
    bits, least = SIZES[dtype]
    exponent = np.frexp(np.where(x == 0, 1e-300, x))[1] - 1
    return 2.0 ** (np.maximum(exponent, least) - bits)


def oracle(x, dtype):
    """The weight and its correction, by division."""
    size = np.abs(x.astype("float64"))
    fine = np.floor(256 * size / unit(size, dtype) + 0.5)
    size = fine * unit(size, dtype) / 256
    weight = np.floor(size / unit(size, dtype) + 0.5) * unit(size, dtype)
    correction = 256 * (size - weight) / unit(size, dtype)
    return np.copysign(weight, x), correction


@each_dtype
def test_same_as_division(dtype):
    x = numbers(dtype)
    weight, correction = program(split_weight, dtype)(ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(correction.dtype) == "int8"
    assert keras.backend.standardize_dtype(weight.dtype) == dtype
    weight, correction = to_numpy(weight), to_numpy(correction)
    with np.errstate(all="ignore"):
        expected, rest = oracle(x, dtype)
    largest = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    is_finite = np.abs(expected) <= largest
    np.testing.assert_array_equal(weight[is_finite], expected[is_finite])
    np.testing.assert_array_equal(correction[is_finite], rest[is_finite])
    np.testing.assert_array_equal(np.signbit(weight), np.signbit(x))
    # What is larger, infinite or no number is so afterwards.
    np.testing.assert_array_equal(np.isnan(weight), np.isnan(x))
    beyond = ~is_finite & ~np.isnan(x)
    assert beyond.any() and np.isinf(weight[beyond]).all()
    assert not correction[~is_finite].any()


@each_dtype
def test_joined_is_what_was_split(dtype):
    x = numbers(dtype)
    weight, correction = program(split_weight, dtype)(ops.convert_to_tensor(x))
    joined = program(join_weight)(weight, correction)
    again = program(split_weight, dtype)(joined)
    for a, b in zip(again, (weight, correction), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    joined, weight = to_numpy(joined), to_numpy(weight)
    is_finite = np.isfinite(weight)
    np.testing.assert_array_equal(joined[~is_finite], weight[~is_finite])
    error = np.abs(joined - x)[is_finite]
    assert (error <= unit(np.abs(x), dtype)[is_finite] / 512).all()


@each_dtype
def test_stale_corrections_move_a_weight_by_half_a_step(dtype):
    """Any correction on any weight: it rounds to that weight again."""
    codes = np.arange(-(2**15), 2**15).astype("int16").view(DTYPES[dtype])
    weights = ops.convert_to_tensor(codes.astype("float32"))
    weights = ops.cast(weights, dtype)
    values = to_numpy(weights)
    is_number = ~np.isnan(values)
    for stale in (-128, -1, 1, 127):
        stale = ops.full(weights.shape, stale, "int8")
        joined = program(join_weight)(weights, stale)
        np.testing.assert_array_equal(
            to_numpy(program(split_weight, dtype)(joined)[0]), values
        )
        moved = np.abs(to_numpy(joined) - values)
        half = unit(np.abs(values), dtype) / 2
        is_finite = np.isfinite(values)
        assert (moved[is_finite] <= half[is_finite]).all()
        # Not from 0 to a NaN, nor from infinity back.
        assert np.isfinite(to_numpy(joined))[is_finite].all()
        np.testing.assert_array_equal(np.isnan(joined), ~is_number)


@each_dtype
def test_rounds_to_the_nearest(dtype):
    x = numbers(dtype)
    x = x[np.isfinite(x)]
    actual = to_numpy(program(round_weight, dtype)(ops.convert_to_tensor(x)))
    with np.errstate(all="ignore"):
        nearest = x.astype(DTYPES[dtype]).astype("float64")
    # In the middle of two, away from zero.
    different = actual != nearest
    assert different.sum() < 20
    assert (np.abs(actual) >= np.abs(x))[different].all()
    other = np.abs(actual - x) - np.abs(nearest - x)
    assert (np.abs(other) <= 1e-6 * unit(np.abs(x), dtype))[different].all()


@each_dtype
def test_rounds_at_random_to_the_right_number_on_average(dtype):
    noise = (np.arange(2**16, dtype="float32") + 0.5) / 2**16
    rounding = program(round_weight, dtype)
    values = [0.1234567, -3.3e-6, 1.7, 4e-8, -1.0]
    for value in values:
        x = ops.full(noise.shape, value, "float32")
        rounded = to_numpy(rounding(x, noise=ops.convert_to_tensor(noise)))
        assert len(np.unique(rounded)) == (1 if value == -1.0 else 2)
        spread = unit(np.abs(value), dtype)
        exact = float(np.float32(value))
        assert abs(rounded.mean() - exact) < 1e-3 * spread
        assert (np.abs(rounded - exact) < spread).all()
