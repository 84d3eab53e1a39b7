"""Modes of `AutoDrop`: when to drop, from angular velocities alone.

`observe(angle)` returns whether to drop now; `dropped()` tells that the drop
was made; `clear()` forgets the angles. All that a rule remembers is numbers in
`vars(rule)`, which JSON holds without loss.
"""

import math

# factor, threshold and window_steps of each mode
DEFAULTS = {
    "auto": (0.3, None, None),
    "epoch": (0.2, 0.01, None),
    "window": (0.95, 0.1, 64),
}


def with_defaults(mode, options):
    """Return `(factor, threshold, window_steps)`, nones filled in by mode."""
    return [
        default if option is None else option
        for option, default in zip(options, DEFAULTS.get(mode, options))
    ]


def checks(callback):
    """Check the options of an `AutoDrop`.

    Returns:
        List of tuples: name, whether its value is right, what is expected.
    """
    mode, threshold = callback.mode, callback.threshold
    window_steps = callback.window_steps
    is_threshold, degrees = threshold is None, "None in mode 'auto'"
    if mode != "auto":
        is_threshold = 0 < threshold <= 180
        degrees = "in (0, 180] degrees"
    is_maximum = mode != "epoch" or threshold <= callback.max_threshold <= 180
    is_window = window_steps is None or window_steps >= 1
    steps = "an integer of at least 1"
    if mode == "epoch":
        is_window, steps = window_steps is None, "None in mode 'epoch'"
    is_rate = 0 <= callback.min_lr < math.inf
    return [
        ("factor", 0 < callback.factor < 1, "in (0, 1)"),
        ("threshold", is_threshold, degrees),
        (
            "max_threshold",
            is_maximum,
            f"from `threshold`, {threshold}, to 180 degrees",
        ),
        ("window_steps", is_window, steps),
        ("min_lr", is_rate, "finite, 0 or more"),
        ("warmup_steps", callback.warmup_steps >= 0, "0 or more"),
        ("verbose", callback.verbose in (0, 1), "0 or 1"),
    ]


def make_rule(mode, factor, threshold, max_threshold):
    if mode == "epoch":
        return EpochRule(factor, threshold, max_threshold)
    return WindowRule(threshold) if mode == "window" else SaturationRule()


class EpochRule:
    """Drop when the angle changes by less than a threshold that grows."""

    def __init__(self, factor, threshold, max_threshold):
        self.factor = factor
        self.threshold, self.max_threshold = threshold, max_threshold
        self.last = None

    def clear(self):
        self.last = None

    def observe(self, angle):
        last, self.last = self.last, angle
        return last is not None and abs(angle - last) < self.threshold

    def dropped(self):
        self.threshold = min(self.max_threshold, self.threshold / self.factor)
        self.clear()


class WindowRule:
    """Drop when the smoothed angle grows by less than a threshold.

    ```
    sigma = min(std(w), size / 2)
    C     = sum_j K_j w_{i-j} / sum_j K_j,   K_j = exp(-j^2 / (2 sigma^2))
    ```
    """

    size = 10

    def __init__(self, threshold):
        self.threshold = threshold
        self.clear()

    def clear(self):
        self.angles, self.last = [], None

    def observe(self, angle):
        self.angles.append(angle)
        if len(self.angles) < self.size:
            return False
        last, self.last = self.last, self._smooth()
        self.angles.pop(0)
        return last is not None and self.last - last < self.threshold

    def _smooth(self):
        mean = math.fsum(self.angles) / self.size
        variance = math.fsum((w - mean) ** 2 for w in self.angles) / self.size
        # Angles that are all alike have no deviation to divide by.
        sigma = max(1e-3, min(math.sqrt(variance), self.size / 2))
        kernel = [math.exp(-0.5 * (j / sigma) ** 2) for j in range(self.size)]
        newest_first = reversed(self.angles)
        total = math.fsum(k * w for k, w in zip(kernel, newest_first))
        return total / math.fsum(kernel)

    def dropped(self):
        self.clear()


class SaturationRule:
    """Drop when the angle has stopped rising, beyond its own noise.

    Of the newest angles w_1 ... w_n since the last drop, halves a (older) and
    b (newer):

    ```
    noise = sqrt(mean((w_{i+1} - w_i)^2) / 2)
    error = noise sqrt(1 / |a| + 1 / |b|)
    drop if  mean(b) - mean(a) <= error  and  mean(b) + error >= 90
    ```

    A slow trend hardly enters the differences of neighbours, so that `noise`
    is the noise alone and `error` the standard error of the rise. Below 90
    degrees steps still point the same way: training gains ground, and what
    looks settled is the passage from one slope to the next.
    """

    fewest, most = 12, 16

    def __init__(self):
        self.angles = []

    def clear(self):
        self.angles = []

    def observe(self, angle):
        self.angles = [*self.angles, angle][-self.most :]
        n = len(self.angles)
        if n < self.fewest:
            return False
        older, newer = self.angles[: n - n // 2], self.angles[n - n // 2 :]
        differences = [b - a for a, b in zip(self.angles, self.angles[1:])]
        variance = math.fsum(d * d for d in differences) / len(differences) / 2
        error = math.sqrt(variance * (1 / len(older) + 1 / len(newer)))
        level = math.fsum(newer) / len(newer)
        rise = level - math.fsum(older) / len(older)
        # Angles that are all alike have no noise, and do not rise.
        return rise <= error and level + error >= 90

    def dropped(self):
        self.clear()
