import functools
import math

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from keras_efficient.ops import dequantize_8bit
from keras_efficient.ops import quantize_8bit
from tests.compilers import compiled

LARGEST = 65504.0**2  # what the root of a scale can hold

SHAPES = [
    *((), (0,), (1,), (31,), (32,), (33,), (53,), (54,), (123,), (4097,)),
    *((3, 3, 5, 7), (64, 48), (5, 64), (5, 0), (7, 33), (300, 10), (2, 3, 60)),
]


@functools.partial(compiled, static_argnums=1)
def round_trips(tensors, signed, noise):
    codes = [quantize_8bit(x, signed, noise) for x in tensors]
    return [(tensors, dequantize_8bit(*tensors)) for tensors in codes]


def quantize(x, signed=True, noise=0.5):
    """Return codes, scale and the decoded tensor, in float64."""
    return quantize_all([x], signed, noise)[0]


def quantize_all(values, signed, noise=0.5):
    """Do so for each of many, by one program."""
    values = [np.asarray(x, "float32") for x in values]
    tensors = list(map(keras.ops.convert_to_tensor, values))
    noise = keras.ops.convert_to_tensor(noise, "float32")
    pairs = zip(values, round_trips(tensors, signed, noise), strict=True)
    return [as_arrays(x, signed, *found) for x, found in pairs]


def as_arrays(x, signed, tensors, decoded):
    dtypes = [keras.backend.standardize_dtype(y.dtype) for y in tensors]
    assert dtypes == ["int8" if signed else "uint8", "float16"]
    codes, scale = map(keras.ops.convert_to_numpy, tensors)
    decoded = keras.ops.convert_to_numpy(decoded)
    assert decoded.dtype == "float32"
    assert codes.shape == decoded.shape == x.shape
    return *(y.astype("float64") for y in (codes, scale)), decoded


def groups(shape):
    """Return the numbers of the entries of each group, as a list of lists."""
    size = math.prod(shape)
    last = shape[-1] if shape else 1
    if math.ceil(last / 32) * 32 > 1.2 * last:
        last = size  # one long row
    return [
        list(range(start, min(start + 32, row + last)))
        for row in range(0, size, last or 1)
        for start in range(row, row + last, 32)
    ]


def steps_of(x, s, signed):
    """Return the codes of a group before they are rounded, in float64."""
    x = x.astype("float64")
    if signed:
        ratio = np.clip(x / s, -1, 1) if s else 0 * x
        return 127 * 2 * ratio / (1 + np.abs(ratio))
    ratio = np.minimum(np.sqrt(x) / s, 1) if s else 0 * x
    return np.where(x > 0, np.maximum(255 * ratio, 1), 0)


def decode(codes, s, signed):
    if signed:
        y = codes / 127
        return s * y / (2 - np.abs(y))
    return (codes * s / 255) ** 2


def data(shape, signed, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-3, 1, size=shape)
    return np.asarray(x if signed else x**2, "float32")


both = pytest.mark.parametrize("signed", [True, False])


@both
def test_equations(signed):
    values = [data(shape, signed) for shape in SHAPES]
    results = quantize_all(values, signed)
    for x, found in zip(values, results, strict=True):
        check_equations(x, x.shape, signed, *(y.reshape(-1) for y in found))


def check_equations(x, shape, signed, codes, scale, decoded):
    x = x.reshape(-1)
    if not x.size:
        assert scale == 0 and decoded.size == 0
        return
    for places, root in zip(groups(shape), scale, strict=True):
        size = np.abs(x[places]) if signed else np.sqrt(x[places])
        assert root == np.float16(np.sqrt(size.max()))
        steps = steps_of(x[places], root**2, signed)
        away_from_ties = np.abs(steps % 1 - 0.5) > 1e-3
        assert away_from_ties.mean() > 0.8
        np.testing.assert_array_equal(
            codes[places][away_from_ties], np.floor(steps + 0.5)[away_from_ties]
        )
        np.testing.assert_allclose(
            decoded[places], decode(codes[places], root**2, signed), 1e-5
        )


@pytest.mark.parametrize(
    "shape, expected",
    [
        *(((64, 48), (96,)), ((64, 64), (64, 2)), ((2, 3, 60), (2, 3, 2))),
        *(((784, 10), (245,)), ((5, 54), (5, 2)), ((5, 53), (9,))),
        *(((4, 27), (4, 1)), ((4, 26), (4,)), ((3, 3, 5, 7), (10,))),
    ],
    ids=str,
)
def test_groups_run_along_the_last_axis_or_over_all(shape, expected):
    _, scale, _ = quantize(np.ones(shape))
    assert scale.shape == expected


def test_bytes():
    from keras_efficient.ops.quantize_8bit import scale_shape

    for last in (*range(1, 200), 257, 513, 1000, 1025):
        for shape in ((4096, last), (16, 256, last), (4096 * last,)):
            size, scales = math.prod(shape), math.prod(scale_shape(shape))
            assert 2 * size + 2 * 2 * scales <= 2.15 * size, shape


def check_error_bound(x, signed):
    """Bound the error by half a step, of the scale as it was rounded."""
    x = np.asarray(x, "float32")
    _, scale, decoded = quantize(x, signed)
    decoded = decoded.astype("float64")
    size = np.abs(x.astype("float64")) if signed else np.sqrt(x, dtype="f8")
    s = size.max(-1, keepdims=True)
    # rounding of the scale: relative, and absolute below 2^-14
    of_scale = np.minimum(s, s * 2**-9 + 2 * np.sqrt(s) * 2**-24 + 2**-47)
    if signed:
        half_step = (size + s) ** 2 / np.maximum(s, 1e-300) / 2 / 254
        error = np.abs(decoded - x)
    else:
        half_step = np.where(size < s / 255, s / 255, s / 510)
        error = np.abs(np.sqrt(decoded) - size)
    assert (error <= 1.01 * half_step + of_scale + 1e-18).all()


@both
@pytest.mark.parametrize("size", [1e-16, 1e-12, 1e-8, 1e-4, 1.0, 1e4, 4e9])
def test_error_bound(size, signed):
    x = data((50, 32), True)
    x = x / np.abs(x).max() * size
    check_error_bound(x if signed else np.square(x, dtype="float64"), signed)


@both
@hypothesis.given(
    arrays.arrays("float32", (3, 32), elements={"min_value": -4e9})
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_error_bound_of_anything(signed, x):
    x = np.minimum(x, np.float32(4e9))
    check_error_bound(x if signed else np.abs(x) * 1e9, signed)


@both
@pytest.mark.parametrize("noise", [0.0, 0.5, np.float32(1 - 2**-24)])
def test_zeros_are_exact(signed, noise):
    codes, scale, decoded = quantize(np.zeros((3, 64)), signed, noise)
    assert not (codes.any() or scale.any() or decoded.any())


@both
def test_zeros_are_not_divided_by_zero(signed, monkeypatch):
    """What a backend makes of nan in whole numbers is up to the backend."""
    cast = keras.ops.cast
    monkeypatch.setattr(
        keras.ops, "cast", lambda x, d: x if "int8" in d else cast(x, d)
    )
    codes, _ = quantize_8bit(keras.ops.zeros((3, 64)), signed)
    assert not keras.ops.convert_to_numpy(codes).any()


@both
def test_extreme_codes(signed):
    x = np.zeros((2, 32))
    x[0, :4], x[1, :4] = [1, -1, 0.25, 0], [0.25, 1, 0, 0]
    codes, _, decoded = quantize(x if signed else x**2, signed)
    if signed:
        assert codes[0, :4].tolist() == [127, -127, 51, 0]
        np.testing.assert_allclose(decoded[0, :2], [1, -1], rtol=1e-6)
    else:
        assert codes[1, :4].tolist() == [64, 255, 0, 0]
        np.testing.assert_allclose(decoded[1, 1], 1, rtol=1e-6)


def test_second_moment_that_is_not_zero_stays_so():
    x = np.zeros((1, 32))
    x[0, :3] = [1.0, 1e-12, 1e-30]
    codes, _, decoded = quantize(x, signed=False)
    assert codes[0, :4].tolist() == [255, 1, 1, 0]
    assert decoded[0, 1] == decoded[0, 2] > 0 == decoded[0, 3]


@both
def test_what_is_too_large_is_clipped(signed):
    x = np.full((1, 32), LARGEST if signed else LARGEST**2)
    x[0, ::2] = 1e18 if signed else 1e36
    _, scale, decoded = quantize(x, signed)
    assert scale == 65504.0
    np.testing.assert_allclose(
        decoded, LARGEST if signed else LARGEST**2, rtol=1e-6
    )


@both
def test_what_is_too_small_is_lost(signed):
    for size in (1e-16, 1e-30, 1e-38):
        x = np.full((1, 32), size if signed else size * size)
        _, scale, decoded = quantize(x, signed)
        assert not scale.any() and not decoded.any()


@pytest.mark.parametrize("size", [1e-10, 1e-8, 1.0, 1e4])
def test_noise_rounds_the_scale_without_bias(size):
    draws = 20_000
    x = np.full((draws, 32), size, "float32")
    noise = np.random.default_rng(0).uniform(size=(draws, 1)).astype("float32")
    _, scale, _ = quantize(x, True, noise)
    root = np.sqrt(np.float64(np.float32(size)))
    low = np.float16(root)
    low = low if low <= root else np.nextafter(low, np.float16(0))
    high = np.nextafter(low, np.float16(np.inf))
    assert set(scale.reshape(-1)) <= {float(low), float(high)}
    unit = float(high) - float(low)
    assert abs(scale.mean() - root) < 5 * unit / 2 / draws**0.5


def test_all_float16_numbers_stay():
    """Scales that float16 holds are not moved, whatever the noise."""
    roots = np.arange(0x7C00, dtype="uint16").view("float16")
    x = np.repeat(np.square(roots, dtype="float32")[:, None], 32, axis=1)
    _, scale, _ = quantize(x)
    np.testing.assert_array_equal(scale[:, 0], roots.astype("float64"))


@both
def test_computes_with_the_scale_that_it_returns(signed, monkeypatch):
    """XLA on GPU leaves out casts to half precision and back."""
    x = data((50, 64), signed)
    codes, scale, _ = quantize(x, signed)
    cast = keras.ops.cast
    monkeypatch.setattr(
        keras.ops, "cast", lambda x, d: x if d == "float16" else cast(x, d)
    )
    step_fn = compiled(quantize_8bit, static_argnums=1)
    tensors = step_fn(keras.ops.convert_to_tensor(x), signed)
    actual_codes, actual_scale = map(keras.ops.convert_to_numpy, tensors)
    assert actual_scale.dtype == "float32"
    np.testing.assert_array_equal(actual_codes, codes)
    np.testing.assert_array_equal(actual_scale, scale)
