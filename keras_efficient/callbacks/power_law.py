"""The power law that learning curves follow, fitted without a solver."""

import numpy as np

GRID = np.geomspace(0.05, 5.0, 60)
GOLDEN = (np.sqrt(5) - 1) / 2
ROUNDS = 60  # of the golden section: 1e-12 of what the grid leaves


def fit_power_law(x, y, limit):
    """Fit y = c - a x^(-b) by least squares: a >= 0, c from max(y) to limit.

    For a given b this is linear in (c, a): the best b is looked for on a grid,
    then by a golden section around the best of the grid. A curve that falls is
    fitted upside down.

    Args:
        x: Array of positive floats, at least 3.
        y: Array of as many floats.
        limit: Float, the most that c can be.

    Returns:
        `(c, a, b)`, floats.
    """
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")

    def error(log_b):
        return _linear_fit(x, y, np.exp(log_b), limit)[0]

    grid = np.log(GRID)
    best = int(np.argmin([error(g) for g in grid]))
    low = grid[max(best - 1, 0)]
    high = grid[min(best + 1, len(grid) - 1)]
    for _ in range(ROUNDS):
        left = high - GOLDEN * (high - low)
        right = low + GOLDEN * (high - low)
        if error(left) <= error(right):
            high = right
        else:
            low = left
    b = np.exp((low + high) / 2)
    _, c, a = _linear_fit(x, y, b, limit)
    return float(c), float(a), float(b)


def _linear_fit(x, y, b, limit):
    """Return `(error, c, a)`, the best for a given b."""
    p = x**-b
    q = p - p.mean()
    a = max(0.0, -(q @ (y - y.mean())) / (q @ q))
    c = y.mean() + a * p.mean()
    bounded = np.clip(c, min(y.max(), limit), limit)
    if bounded != c:
        c = bounded
        a = max(0.0, (p @ (c - y)) / (p @ p))
    return ((y - c + a * p) ** 2).sum(), c, a
