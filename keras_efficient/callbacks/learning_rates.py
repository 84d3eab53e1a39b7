"""What a callback needs to set learning rates, one or several."""

import sys

import keras
from absl import logging
from keras import ops


def named_optimizers(model):
    """Return pairs of a log key and an optimizer with a learning rate."""
    optimizer = model.optimizer
    # A LossScaleOptimizer may hold a MultiOptimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(optimizer, "optimizers"):
        return [("learning_rate", optimizer)]
    return [(f"learning_rate_{o.name}", o) for o in optimizer.optimizers]


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
