import itertools

import numpy as np
import pytest

from keras_efficient.conversion.least_work import Cost
from keras_efficient.conversion.least_work import least_peak
from keras_efficient.conversion.least_work import least_work
from tests.marks import once


def peak(costs, chosen):
    """What the backward pass of each segment holds, straight on."""
    held = [c.inputs if again else c.kept for c, again in zip(costs, chosen)]
    return max(
        sum(held[:i]) + cost.kept + (cost.inputs if again else 0)
        for i, (cost, again) in enumerate(zip(costs, chosen))
    )


def work(costs, chosen):
    return sum(cost.work for cost, again in zip(costs, chosen) if again)


def random_costs(seed, count):
    rng = np.random.default_rng(seed)
    return [
        Cost(int(rng.integers(5, 100)), int(rng.integers(1, 20)), float(number))
        for number in rng.random(count)
    ]


@once
@pytest.mark.parametrize("seed", range(10))
def test_the_choice_is_the_best_of_all(seed):
    costs = random_costs(seed, 2 + seed)
    every = list(itertools.product([False, True], repeat=len(costs)))
    lowest = min(peak(costs, chosen) for chosen in every)
    for limit in np.linspace(lowest, sum(c.kept for c in costs), 7):
        found = least_work(costs, limit)
        assert peak(costs, found) <= limit
        best = min(
            work(costs, chosen)
            for chosen in every
            if peak(costs, chosen) <= limit
        )
        assert work(costs, found) == pytest.approx(best)
    assert least_work(costs, lowest - 1) is None
    assert lowest <= least_peak(costs) <= 1.01 * lowest


@once
def test_rounding_costs_little():
    costs = random_costs(0, 60)
    limit = 0.4 * sum(cost.kept for cost in costs)
    exact = least_work(costs, limit, places=10**9)
    rounded = least_work(costs, limit, places=300)
    assert peak(costs, rounded) <= limit
    assert work(costs, rounded) <= 1.1 * work(costs, exact)
