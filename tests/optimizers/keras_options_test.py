"""What every Keras optimizer can do, for each of ours."""

import keras
import numpy as np
import pytest

from tests.optimizers.table import TABLE
from tests.optimizers.table import check_close
from tests.optimizers.table import check_equal
from tests.optimizers.table import each_algorithm
from tests.optimizers.table import each_with_a_third
from tests.optimizers.table import layout_of
from tests.optimizers.table import make
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import plain_optimizer
from tests.optimizers.table import plain_stepper
from tests.optimizers.table import stepper
from tests.optimizers.table import third_of_algorithms
from tests.optimizers.table import to_numpy

CODES = 1e-2  # part of the entries that another code may move


@third_of_algorithms(0)
def test_learning_rate_schedule(name):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.1, 0.01, 0.5]
    )
    actual = make_variables()
    scheduled_step = stepper(make(name, schedule), actual)
    manual_step, expected = plain_stepper(name)
    manual = plain_optimizer(name)
    for step, learning_rate in enumerate([0.1, 0.01, 0.5]):
        manual.learning_rate = learning_rate
        scheduled_step(make_gradients(step))
        manual_step(make_gradients(step))
        check_close(actual, expected, 1e-6)


@third_of_algorithms(1)
def test_weight_decay_what_is_excluded_from_it_and_average(name):
    decayed = make(
        name,
        weight_decay=0.2,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=3,
    )
    decayed.exclude_from_weight_decay(var_names=["bias"])
    actual = make_variables()
    decayed_step = stepper(decayed, actual)
    plain_step, reference = plain_stepper(name)
    expected, averages = to_numpy(actual), None
    for step in range(3):
        before = to_numpy(reference)
        after = plain_step(make_gradients(step))
        for i, decay in enumerate([0.02, 0.02, 0.0]):
            expected[i] = expected[i] * (1 - decay) + after[i] - before[i]
        averages = [
            # Keras starts the average at 0 and its momentum at 0
            x if step == 0 else 0.5 * average + 0.5 * x
            for x, average in zip(expected, averages or expected, strict=True)
        ]
        decayed_step(make_gradients(step))
        check_close(actual, expected if step < 2 else averages)


def clip_each(gradients):
    return [g / np.linalg.norm(g) for g in gradients]


def clip_all(gradients):
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    return [g / norm for g in gradients]


CLIPS = {"clipnorm": clip_each, "global_clipnorm": clip_all}


@each_with_a_third("option", CLIPS)
def test_clipping(option, name):
    actual = make_variables()
    clipped_step = stepper(make(name, **{option: 1.0}), actual)
    plain_step, expected = plain_stepper(name)
    for step in range(3):
        gradients = make_gradients(step)
        clipped_step(gradients)
        plain_step(CLIPS[option](gradients))
    outliers = 0.0 if TABLE[name].exact else CODES
    check_close(actual, expected, 1e-4, outliers)


@third_of_algorithms(2)
def test_gradient_accumulation(name):
    actual = make_variables()
    accumulate = stepper(make(name, gradient_accumulation_steps=2), actual)
    plain_step, expected = plain_stepper(name)
    for step in range(2):
        # few digits, so that their mean is exact
        halves = [
            [np.round(4 * g) / 4 for g in make_gradients(2 * step + half)]
            for half in range(2)
        ]
        before = to_numpy(actual)
        check_equal(accumulate(halves[0]), before)
        accumulate(halves[1])
        plain_step([(a + b) / 2 for a, b in zip(*halves, strict=True)])
        check_close(actual, expected, 1e-4)


@third_of_algorithms(0)
def test_loss_scale_optimizer(name):
    inner = make(name)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    actual = make_variables()
    scaled_step = stepper(scaled, actual)
    plain_step, expected = plain_stepper(name)
    for step in range(2):
        scaled_step(make_gradients(step, scale=1024.0))
        plain_step(make_gradients(step))
        check_close(actual, expected, 1e-4)
    state, values = to_numpy(inner.variables), to_numpy(actual)
    overflow = make_gradients(2)
    overflow[0][0, 0] = np.inf
    check_equal(scaled_step(overflow), values)
    check_equal(inner.variables, state)


@third_of_algorithms(1)
def test_multi_optimizer(name):
    """Each of two gets the tensors that are its own."""
    ours, adam = make(name), keras.optimizers.Adam(0.1)
    variables = make_variables()
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(ours, {"bias": adam})
    )
    step_fn = stepper(optimizer, variables)
    ours_step, expected = plain_stepper(name)
    expected = [*expected[:2], make_variables()[2]]
    adam_step = stepper(keras.optimizers.Adam(0.1), expected[2:])
    for step in range(2):
        step_fn(make_gradients(step))
        ours_step(make_gradients(step))
        adam_step(make_gradients(step)[2:])
    check_close(variables, expected, 1e-4)


@third_of_algorithms(2)
def test_half_precision_variables(name):
    """They keep their dtype, and the state does not depend on it."""
    variables = [*make_variables("bfloat16"), *make_variables("float16")]
    dtypes = [v.dtype for v in variables]
    assert dtypes == ["bfloat16"] * 3 + ["float16"] * 3
    # What corrections are of, `weight_rounding_test.py` tells.
    optimizer = make(name, weight_rounding="nearest")
    step_fn, before = stepper(optimizer, variables), to_numpy(variables)
    layout = layout_of(optimizer)
    for step in range(3):
        after = step_fn(2 * make_gradients(step))
    assert [v.dtype for v in variables] == dtypes
    for x, y in zip(after, before, strict=True):
        assert np.isfinite(x).all() and (x != y).any()
    float32 = make(name)
    float32.build(make_variables() + make_variables())
    assert layout_of(optimizer) == layout_of(float32) == layout


@each_algorithm
def test_tensor_without_gradient_keeps_its_state(name):
    step_fn, variables = plain_stepper(name)
    optimizer = plain_optimizer(name)
    step_fn(make_gradients(0))
    slots = [v for v in optimizer.variables if "kernel" in v.name]
    assert len(slots) == TABLE[name].slots
    kept = [variables[0], *slots]
    before, bias = to_numpy(kept), to_numpy(variables[2:])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        step_fn([None, *make_gradients(1)[1:]])
    check_equal(kept, before)
    assert (to_numpy(variables[2:])[0] != bias[0]).any()
