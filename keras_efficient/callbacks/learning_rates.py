"""What a callback needs to set learning rates, one or several."""

import sys

import keras
from absl import logging
from keras import ops


def named_optimizers(model):
    """Return pairs of a log key and an optimizer with a learning rate."""
    optimizer = model.optimizer
    if optimizer is None:
        raise ValueError(
            "A callback that sets the learning rate needs a model with an "
            "optimizer. Received: a model compiled with `optimizer=None`. "
            "Compile it with one, such as `optimizer='adam'`, or leave out "
            "the callback."
        )
    optimizer = _unwrapped(optimizer)
    if not hasattr(optimizer, "optimizers"):
        return [("learning_rate", optimizer)]
    named = {}
    for inner in optimizer.optimizers:
        key = name = f"learning_rate_{inner.name}"
        number = 0
        while key in named:
            number += 1
            key = f"{name}_{number}"
        named[key] = _unwrapped(inner)
    return list(named.items())


def _unwrapped(optimizer):
    """Return what a LossScaleOptimizer or another wrapper holds."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def check_learning_rates(named_optimizers, callback):
    """Raise an error if `callback` cannot set a learning rate."""
    for _, optimizer in named_optimizers:
        # Writing what is there finds that out through public names only.
        try:
            optimizer.learning_rate = read_learning_rate(optimizer)
        # What Keras raises for a schedule and for any other callable.
        except (TypeError, AttributeError) as error:
            schedule = isinstance(error, TypeError)
            kind = "`LearningRateSchedule`" if schedule else "callable"
            raise ValueError(
                f"`{callback}` sets the learning rate and expects one that is "
                f"a number. Received: optimizer '{optimizer.name}' with a "
                f"{kind} as its `learning_rate`. Pass the optimizer a float "
                "instead, such as `learning_rate=0.1`."
            ) from error


def read_learning_rate(optimizer):
    return float(ops.convert_to_numpy(optimizer.learning_rate))


def lower_learning_rate(optimizer, factor, min_lr):
    """Multiply a learning rate by `factor`; return whether that lowered it."""
    old = read_learning_rate(optimizer)
    new = max(min_lr, factor * old)
    if new < old:
        optimizer.learning_rate = new
    # `min_lr`, rounded as the learning rate is, may be what was there.
    return read_learning_rate(optimizer) < old


def report(message):
    """Print in Keras' manner: to the screen, or to the log."""
    if keras.config.is_interactive_logging_enabled():
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()
    else:
        logging.info(message)


class Count(float):
    """A count in the logs, which the progress bar shows without decimals.

    It is a float, as all that Keras logs: the bar divides by the number of
    steps, which is 1 at the end of an epoch, and formats with decimals.
    """

    def __truediv__(self, other):
        result = float(self) / other
        return Count(result) if result.is_integer() else result

    def __format__(self, spec):
        return format(int(self), spec if spec.endswith("d") else "")


class WarmUp:
    """Raise the learning rate linearly over the first steps of a run.

    Attributes:
        full_rates: Dictionary of what it leads to, by log key; empty when the
            warm-up is over. A run that was interrupted goes on with it.
    """

    def __init__(self, steps):
        self.steps = steps
        self.full_rates = {}

    def is_on(self, steps_done):
        return steps_done < self.steps or bool(self.full_rates)

    def set_rate(self, model, steps_done):
        """Set the learning rate for the step after `steps_done`."""
        share = min(1.0, (steps_done + 1) / max(1, self.steps))
        for key, optimizer in named_optimizers(model):
            full = self.full_rates.setdefault(
                key, read_learning_rate(optimizer)
            )
            optimizer.learning_rate = share * full
        if steps_done >= self.steps:
            self.full_rates = {}
