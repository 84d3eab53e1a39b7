"""The rules alone: numbers in, decisions out."""

import json

import numpy as np
import pytest

from keras_efficient.callbacks.drop_rules import EpochRule
from keras_efficient.callbacks.drop_rules import SaturationRule
from keras_efficient.callbacks.drop_rules import WindowRule


def drops_of(rule, angles):
    """Return where `rule` drops, told of each drop."""
    drops = []
    for i, angle in enumerate(angles):
        if rule.observe(float(angle)):
            drops.append(i)
            rule.dropped()
    return drops


def noisy(level, seed=0, noise=2.0):
    level = np.asarray(level, "float64")
    return level + noise * np.random.default_rng(seed).normal(size=len(level))


def test_window_rule_smooths_over_time():
    # The kernel of the first smoothed value, written out.
    angles = noisy(np.linspace(60, 90, 10))
    rule = WindowRule(threshold=0.1)
    assert not any(rule.observe(angle) for angle in angles)
    sigma = min(np.std(angles), 5)
    kernel = np.exp(-(np.arange(10)[::-1] ** 2) / (2 * sigma**2))
    expected = np.sum(kernel * angles) / np.sum(kernel)
    assert rule.last == pytest.approx(expected, rel=1e-12)
    # The next value compares with it and loses the oldest angle.
    decision = rule.observe(90.0)
    assert decision == (rule.last - expected < 0.1)
    assert rule.angles == [*angles[2:], 90.0]


@pytest.mark.parametrize(
    "slope, expected",
    # The first decision is the eleventh angle; a fall drops as well.
    [(0.2, []), (0.05, [10, 21]), (0.0, [10, 21]), (-1.0, [10, 21])],
)
def test_window_rule_on_a_line(slope, expected):
    angles = 90 + slope * np.arange(30)
    assert drops_of(WindowRule(threshold=0.1), angles) == expected


def test_window_rule_bears_angles_without_deviation():
    rule = WindowRule(threshold=0.1)
    assert drops_of(rule, [90.0] * 11) == [10]


def test_saturation_rule_waits_while_the_angle_rises():
    assert drops_of(SaturationRule(), noisy(np.linspace(60, 120, 40))) == []


def test_saturation_rule_drops_when_it_has_risen():
    level = np.minimum(60 + 2.0 * np.arange(60), 100)
    (first, *_) = drops_of(SaturationRule(), noisy(level))
    # The rise ends at the twentieth angle; half a history shows it.
    assert 20 <= first <= 20 + SaturationRule.most


@pytest.mark.parametrize("rise, is_drop", [(0.5, True), (3.0, False)])
def test_saturation_rule_measures_the_rise_by_the_noise(rise, is_drop):
    """Two levels, and angles that alternate about them by 2 degrees."""
    fewest = SaturationRule.fewest
    angles = 100 + 2.0 * (-1.0) ** np.arange(fewest)
    angles[fewest // 2 :] += rise
    # sqrt(4^2 / 2) sqrt(2 / 6) = 1.6, about.
    assert drops_of(SaturationRule(), angles) == [fewest - 1] * is_drop


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_saturation_rule_has_no_scale(scale):
    """The same decisions whatever the size of rise and noise together."""
    angles = noisy(np.minimum(3.0 * np.arange(40), 60)) - 60
    expected = drops_of(SaturationRule(), 100 + angles)
    assert drops_of(SaturationRule(), 100 + scale * angles) == expected != []


def test_saturation_rule_needs_as_many_angles_after_each_drop():
    fewest = SaturationRule.fewest
    drops = drops_of(SaturationRule(), [95.0] * (3 * fewest))
    assert drops == [fewest - 1, 2 * fewest - 1, 3 * fewest - 1]


def test_saturation_rule_does_not_drop_while_steps_agree():
    assert drops_of(SaturationRule(), noisy([70.0] * 60)) == []
    assert drops_of(SaturationRule(), noisy([90.0] * 60)) != []


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpochRule(0.5, 0.5, 2.0),
        lambda: WindowRule(0.1),
        SaturationRule,
    ],
)
def test_rule_goes_on_from_what_json_held(make):
    angles = noisy(np.minimum(60 + 2.0 * np.arange(80), 100))
    expected = drops_of(make(), angles)
    assert expected
    for cut in (5, 17, 40):
        first, second = make(), make()
        drops = drops_of(first, angles[:cut])
        vars(second).update(json.loads(json.dumps(vars(first))))
        drops += [cut + i for i in drops_of(second, angles[cut:])]
        assert drops == expected


def test_rules_forget():
    for rule in (EpochRule(0.5, 0.5, 2.0), WindowRule(0.1), SaturationRule()):
        for _ in range(7):
            rule.observe(95.0)
        rule.clear()
        assert not rule.observe(95.0)


def test_epoch_rule_doubles_its_threshold():
    rule = EpochRule(0.5, 0.5, 2.0)
    assert drops_of(rule, [30, 30.4, 50, 50.9, 70, 68.1]) == [1, 3, 5]
    assert rule.threshold == 2.0
