import math

from keras_efficient.callbacks.check_options import check_options

# factor, threshold, window_steps
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


def check_auto_drop(callback):
    """Raise an error if an option of an `AutoDrop` is outside its range."""
    mode, threshold = callback.mode, callback.threshold
    window_steps = callback.window_steps
    check_options(callback, [("mode", mode in DEFAULTS, list(DEFAULTS))])
    is_threshold, degrees = threshold is None, "None in mode 'auto'"
    if mode != "auto":
        is_threshold = 0 < threshold <= 180
        degrees = "in (0, 180] degrees"
    is_maximum = mode != "epoch" or (
        is_threshold and threshold <= callback.max_threshold <= 180
    )
    is_window = window_steps is None or window_steps >= 1
    steps = "an integer of at least 1"
    if mode == "epoch":
        is_window, steps = window_steps is None, "None in mode 'epoch'"
    check_options(
        callback,
        [
            ("factor", 0 < callback.factor < 1, "in (0, 1)"),
            ("threshold", is_threshold, degrees),
            (
                "max_threshold",
                is_maximum,
                f"from `threshold`, {threshold}, to 180 degrees",
            ),
            ("window_steps", is_window, steps),
            ("min_lr", 0 <= callback.min_lr < math.inf, "finite, 0 or more"),
            ("warmup_steps", callback.warmup_steps >= 0, "0 or more"),
            ("verbose", callback.verbose in (0, 1), "0 or 1"),
        ],
    )
