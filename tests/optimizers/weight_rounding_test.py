"""Each optimizer of ours on 16-bit weights, as in float32."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.kernels import policy
from tests.optimizers.table import check_equal
from tests.optimizers.table import each_algorithm
from tests.optimizers.table import make
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import third_of_algorithms
from tests.optimizers.table import to_numpy

SHAPES = {"kernel": (48, 96), "bias": (64,)}


def starts():
    """Numbers that 16 bits hold."""
    for i, shape in enumerate(SHAPES.values()):
        yield np.round(normal(*shape, seed=i) * 64) / 1024


def make_variables(dtype):
    return [
        keras.Variable(value, dtype=dtype, name=name)
        for name, value in zip(SHAPES, starts())
    ]


def values(optimizer, variables):
    """With what 16 bits do not show."""
    return to_numpy(
        optimizer._weights.read(i, v) if v.dtype != "float32" else v
        for i, v in enumerate(variables)
    )


def moved(optimizer, dtype, steps=6):
    variables = make_variables(dtype)
    run = stepper(optimizer, variables)
    for step in range(steps):
        gradients = [normal(*s, seed=[step, 7]) for s in SHAPES.values()]
        run([np.round(16 * g + 4) / 16 for g in gradients])
    ends = values(optimizer, variables)
    return np.concatenate([(x - y).ravel() for x, y in zip(ends, starts())])


RATE = 2e-5
# Of the step of a matrix.
RATES = {"SinkGD": 4e-4, "SGD8bit": 1e-4}


@each_algorithm
def test_weights_move_as_in_float32(name, monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "off")
    rate = RATES.get(name, RATE)
    expected = moved(make(name, rate, weight_decay=0.5), "float32")
    actual = moved(make(name, rate, weight_decay=0.5), "bfloat16")
    assert np.corrcoef(actual, expected)[0, 1] > 0.99
    assert 0.98 < np.abs(actual).mean() / np.abs(expected).mean() < 1.02


def test_float16_and_the_other_ways_to_round(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "off")
    expected = moved(make("Adam8bit", RATE), "float32")
    actual = moved(make("Adam8bit", RATE), "float16")
    assert np.corrcoef(actual, expected)[0, 1] > 0.999
    options = {"weight_rounding": "nearest"}
    lost = moved(make("Adam8bit", RATE, **options), "bfloat16")
    assert np.abs(lost).mean() < 0.5 * np.abs(expected).mean()
    options = {"weight_rounding": "stochastic"}
    actual = moved(make("Adam8bit", RATE, **options), "bfloat16")
    assert abs(actual.mean() / expected.mean() - 1) < 0.2
    again = moved(make("Adam8bit", RATE, **options), "bfloat16")
    np.testing.assert_array_equal(actual, again)


def layout(optimizer, dtype):
    optimizer.build(make_variables(dtype))
    return sorted((v.dtype, tuple(v.shape)) for v in state_of(optimizer))


@each_algorithm
def test_state_is_that_of_float32_and_a_byte_a_weight(name):
    expected = layout(make(name), "float32")
    for rounding in ("nearest", "stochastic"):
        options = {"weight_rounding": rounding}
        assert layout(make(name, **options), "bfloat16") == expected
    corrections = [("int8", shape) for shape in SHAPES.values()]
    for dtype in ("bfloat16", "float16"):
        actual = layout(make(name), dtype)
        assert actual == sorted([*expected, *corrections])


def test_what_is_not_a_way_to_round_is_refused():
    with pytest.raises(ValueError, match="`weight_rounding` must be one of"):
        make("Adam8bit", weight_rounding="exact")


@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_assigned_weights_are_what_they_are_assigned(kernels, monkeypatch):
    """A stale correction moves them by half a step, and 0 to no NaN."""
    monkeypatch.setattr(policy, "_chosen", kernels)
    optimizer = make("Adam8bit", 0.0)
    variables = make_variables("bfloat16")
    optimizer.build(variables)
    for value in (-128, -1, 127):
        for variable, start in zip(variables, starts()):
            variable.assign(np.where(start > 0.1, 0.0, start))
        before = to_numpy(variables)
        for correction in optimizer._weights.corrections:
            correction.assign(np.full(correction.shape, value))
        optimizer.apply([ops.ones(v.shape, v.dtype) for v in variables])
        check_equal(variables, before)
        ends = values(optimizer, variables)
        for x, y in zip(ends, before, strict=True):
            assert (np.abs(x - y) <= np.maximum(np.abs(y) / 256, 1e-38)).all()


@third_of_algorithms(0)
def test_decay_and_average_are_in_float32(name, monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "off")
    # Each decay is a tenth of the distance to the next bfloat16.
    optimizer = make(
        name,
        1e-3,
        weight_decay=0.4,
        use_ema=True,
        ema_momentum=0.9,
    )
    variables = [
        keras.Variable(np.full(shape, 0.5), dtype="bfloat16", name=name)
        for name, shape in SHAPES.items()
    ]
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    run = stepper(optimizer, variables)
    zeros = [np.zeros(shape) for shape in SHAPES.values()]
    average = 0.0
    for step in range(30):
        run(zeros)
        decayed = 0.5 * (1 - 4e-4) ** (step + 1)
        average = 0.9 * average + 0.1 * decayed if step else decayed
    kernel, bias = values(optimizer, variables)
    np.testing.assert_allclose(kernel, decayed, rtol=3e-4)
    assert (bias == 0.5).all()
    found = optimizer._model_variables_moving_average[0]
    assert found.dtype == "float32"
    np.testing.assert_allclose(to_numpy([found])[0], average, rtol=3e-4)


@third_of_algorithms(1)
def test_accumulates_and_unscales_in_float32(name, monkeypatch):
    """What is small is still there: in float16, both would make it 0."""
    monkeypatch.setattr(policy, "_chosen", "off")
    # The steps of all others do not shrink with the gradients.
    rate = 1e4 if name == "SGD8bit" else 1e-2
    results = []
    for dtype in ("float32", "float16"):
        optimizer = make(
            name,
            rate,
            gradient_accumulation_steps=2,
            loss_scale_factor=2.0**12,
        )
        variables = make_variables(dtype)
        run = stepper(optimizer, variables)
        for step, scale in enumerate((2.0**-10, 2.0**-11) * 2):
            gradients = [normal(*s, seed=[step, 7]) for s in SHAPES.values()]
            run([scale * np.round(16 * g) / 16 for g in gradients])
        results.append(values(optimizer, variables))
    for x, y, start in zip(*results, starts()):
        assert np.corrcoef((x - start).ravel(), (y - start).ravel())[0, 1] > (
            0.999
        )
