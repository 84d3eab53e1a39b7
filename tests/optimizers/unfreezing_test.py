"""Unfreezing: one group of layers more at a time."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import Unfreezing
from tests.marks import once
from tests.optimizers.table import check_close
from tests.optimizers.table import normal
from tests.optimizers.table import placed
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

PATHS = ("body/a/kernel", "body/b/kernel", "head/kernel", "head/bias")
GROUPS = [["head"], ["body/b"], ["a"]]
GROUP_OF = (2, 1, 0, 0)
SHAPES = ((5, 5), (5, 5), (5, 2), (2,))


def variables(dtype="float32"):
    return [
        placed(shape, path, i, dtype)
        for i, (shape, path) in enumerate(zip(SHAPES, PATHS))
    ]


def gradients(step):
    return [normal(*s, seed=[3, step, i]) for i, s in enumerate(SHAPES)]


def clipped(values, norm):
    total = np.sqrt(sum(np.sum(g**2) for g in values))
    return [g * min(1.0, norm / total) for g in values]


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: keras.optimizers.AdamW(
            0.1, weight_decay=0.1, **kwargs
        ),
        lambda **kwargs: Adam8bit(
            0.1, weight_decay=0.1, use_ema=True, **kwargs
        ),
    ],
    ids=["AdamW", "Adam8bit"],
)
def test_it_is_one_optimizer_for_each_group_from_its_start_on(make):
    """No decay, no momentum and no part in the norm before; then t = 1."""
    ours, theirs = variables(), variables()
    optimizer = Unfreezing(
        make(global_clipnorm=2.0), GROUPS, interval=3, factor=0.5
    )
    step_fn = stepper(optimizer, ours)
    steppers = []
    for group in range(3):
        single = make()
        single.learning_rate = 0.1 * 0.5**group
        its = [v for v, g in zip(theirs, GROUP_OF) if g == group]
        steppers.append(stepper(single, its))
    for step in range(9):
        values = gradients(step)
        active = [g <= step // 3 for g in GROUP_OF]
        norm = clipped([g for g, a in zip(values, active) if a], 2.0)
        norm = iter(norm)
        values = [next(norm) if a else None for a in active]
        before = to_numpy(ours)
        after = step_fn(gradients(step))
        for group in range(min(step // 3, 2) + 1):
            steppers[group]([v for v, g in zip(values, GROUP_OF) if g == group])
        check_close(after, to_numpy(theirs), 1e-5)
        moved = [(a != b).any() for a, b in zip(before, after)]
        assert moved == active
        if step == 3:  # Adam's first step, less the decay
            x = before[1] * (1 - 0.1 * 0.05)
            np.testing.assert_allclose(np.abs(after[1] - x), 0.05, rtol=1e-3)
    optimizer.finalize_variable_values(ours)


def test_accumulated_gradients_and_loss_scale():
    """A group starts with what is accumulated from its start on."""
    scaled = keras.optimizers.LossScaleOptimizer(
        Unfreezing(
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
            GROUPS,
            interval=1,
        ),
        initial_scale=4.0,
    )
    ours = variables()
    step_fn = stepper(scaled, ours)
    expected = to_numpy(ours)
    for step in range(6):
        values = gradients(step)
        after = step_fn([4 * g for g in values])
        if step % 2:
            mean = [(a + b) / 2 for a, b in zip(gradients(step - 1), values)]
            for i, group in enumerate(GROUP_OF):
                if group <= step // 2:
                    expected[i] = expected[i] - 0.1 * mean[i]
        check_close(after, expected, 1e-5)


@once
def test_learning_rates_and_settings():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = Unfreezing(keras.optimizers.SGD(schedule), GROUPS, 2, 0.5)
    ours = variables()
    step_fn = stepper(optimizer, ours)
    ones = [np.ones(s, "float32") for s in SHAPES]
    before = to_numpy(ours)
    for _ in range(4):
        after = step_fn(ones)
    moved = [float(np.mean(b - a)) for a, b in zip(after, before)]
    # Each group from the start of the schedule.
    expected = [0.0, 0.05 * 1.5, 0.1 * 1.875, 0.1 * 1.875]
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-7)

    optimizer = Unfreezing(
        keras.optimizers.SGD(0.1, global_clipnorm=1.0), GROUPS, 2, 0.5
    )
    config = optimizer.get_config()
    again = Unfreezing.from_config(config)
    assert again.get_config() == config
    assert config["optimizer"]["config"]["global_clipnorm"] == 1.0
    optimizer.learning_rate = 0.4
    rates = [
        ops.convert_to_numpy(x.learning_rate) for x in optimizer.optimizers
    ]
    np.testing.assert_allclose(rates, [0.4, 0.2, 0.1])


@once
def test_what_cannot_be_right_is_refused():
    sgd = keras.optimizers.SGD(0.1)
    for groups, match in (
        (GROUPS[:2], "must have all.*body/a/kernel"),
        ([*GROUPS, ["tail"]], "none among"),
        ([*GROUPS, ["body"]], "must not overlap"),
    ):
        with pytest.raises(ValueError, match=match):
            Unfreezing(sgd, groups, 2).build(variables())
    with pytest.raises(ValueError, match="`interval` must be"):
        Unfreezing(sgd, GROUPS, 0)
    with pytest.raises(ValueError, match="`factor` must be"):
        Unfreezing(sgd, GROUPS, 1, 0.0)
    with pytest.raises(ValueError, match="`global_clipnorm`.*accumulates"):
        Unfreezing(
            keras.optimizers.SGD(
                0.1, global_clipnorm=1.0, gradient_accumulation_steps=2
            ),
            GROUPS,
            1,
        )
