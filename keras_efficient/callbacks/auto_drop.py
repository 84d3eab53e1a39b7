import math
import sys

import keras
import numpy as np
from absl import logging
from keras import ops


class AutoDrop(keras.callbacks.Callback):
    """Drop the learning rate when the direction of training settles.

    The angle between the parameter steps of two successive epochs, the
    angular velocity, rises while training at a learning rate gains ground
    and levels off when it gains no more. The callback takes that for the
    moment to drop the learning rate: no epochs to choose beforehand and no
    validation data. With x_t the vector of all trainable parameters after
    epoch t, angles in degrees:

    ```
    s_t = x_t - x_{t-1}
    w_t = arccos(s_t . s_{t-1} / (|s_t| |s_{t-1}|))
    if |w_t - w_{t-1}| < threshold:
        learning_rate <- max(min_lr, factor * learning_rate)
        threshold     <- min(max_threshold, threshold / factor)
    ```

    The first angle exists after three epochs and the first drop is possible
    after four. The smaller the model and the noisier its steps, the more the
    angle fluctuates from epoch to epoch, and the larger `threshold` must be.
    Epochs should be alike: the same data in another order.

    The cost is two float32 copies of the trainable parameters in host memory
    (three for a moment at the end of an epoch) and one pass over them an
    epoch; nothing is added to a training step.

    This is the rule of 2021, per epoch. Where we differ from the authors'
    code, and where the formula leaves a choice:

    - The code drops 20 "extra epochs" after the rule asks for it, and then
      loads an average of the parameters of those epochs into the model. Both
      are in the code only, not in the rule, and are left out: the average
      would replace parameters without being asked for it.
    - Parameters are taken at the end of each epoch; the code takes them after
      the first update of an epoch.
    - After a drop the history starts again from the newest parameters. The
      code keeps it, so that its next differences mix steps made at two
      learning rates.
    - A drop needs a learning rate above `min_lr`; otherwise the threshold
      and the history stay as they are.
    - The angle does not depend on the length of the steps, however short. An
      epoch that moves nothing has no angle and is passed over. Parameters
      that are not finite clear the history; to stop training, add
      `keras.callbacks.TerminateOnNaN`.

    Each epoch, from the first, adds to the logs (and so to `History`)
    `angular_velocity`, NaN when there is no angle, and `learning_rate`, the
    one used in the epoch that has ended. With a
    `keras.optimizers.MultiOptimizer`, every optimizer in it is dropped, and
    the key is `learning_rate_{optimizer.name}`. Pass callbacks as a list:
    those listed after this one see the new keys, those before do not. List
    it before `keras.callbacks.SwapEMAWeights`, which exchanges the
    parameters at the end of an epoch.

    Attributes:
        drops: List of the epochs of the current (or last) `fit` after which
            the learning rate was dropped, counted from 0 as in
            `History.epoch`.

    Args:
        factor: Float in (0, 1), what a drop multiplies the learning rate by
            and divides the threshold by. Defaults to `0.2`.
        threshold: Float in (0, 180], degrees. The learning rate drops when
            the angle changes by less from one epoch to the next. Defaults
            to `0.01`.
        max_threshold: Float in [threshold, 180], degrees. The threshold does
            not grow beyond it. Defaults to `1.0`.
        min_lr: Non-negative float, below which the learning rate is not
            dropped. Defaults to `0.0`.
        verbose: `0` or `1`. Whether to report each drop. Defaults to `0`.

    Raises:
        ValueError: an argument is outside its range, or, when training
            begins, the learning rate is a schedule or another callable.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    x, y = keras.random.normal((64, 8)), keras.random.normal((64, 1))
    auto_drop = keras_efficient.callbacks.AutoDrop(min_lr=1e-4)
    history = model.fit(x, y, epochs=5, callbacks=[auto_drop])
    print(history.history["angular_velocity"], auto_drop.drops)
    ```

    Reference:
        - [Teng et al., 2021](https://arxiv.org/abs/2111.15317)
    """

    def __init__(
        self,
        factor=0.2,
        threshold=0.01,
        max_threshold=1.0,
        min_lr=0.0,
        verbose=0,
    ):
        super().__init__()
        self.factor = factor
        self.threshold = threshold
        self.max_threshold = max_threshold
        self.min_lr = min_lr
        self.verbose = verbose
        self._validate()
        self._reset()

    def _validate(self):
        if not 0 < self.factor < 1:
            raise ValueError(
                "`factor` must be in (0, 1): it multiplies the learning rate "
                f"at each drop. Received: factor={self.factor}"
            )
        if not 0 < self.threshold <= 180:
            raise ValueError(
                "`threshold` must be in (0, 180] degrees. "
                f"Received: threshold={self.threshold}"
            )
        if not self.threshold <= self.max_threshold <= 180:
            raise ValueError(
                "`max_threshold` must be from `threshold` to 180 degrees. "
                f"Received: max_threshold={self.max_threshold}, "
                f"threshold={self.threshold}"
            )
        if not 0 <= self.min_lr < math.inf:
            raise ValueError(
                "`min_lr` must be a finite float of at least 0. "
                f"Received: min_lr={self.min_lr}"
            )
        if self.verbose not in (0, 1):
            raise ValueError(
                f"`verbose` must be 0 or 1. Received: verbose={self.verbose}"
            )

    def _reset(self):
        self.drops = []
        self._current_threshold = self.threshold
        self._signature = None
        self._clear_history()

    def _clear_history(self, keep=0):
        """Forget the last angle and all but the `keep` newest points."""
        self._last_angle = None
        self._points = self._points[-keep:] if keep else []

    def on_train_begin(self, logs=None):
        self._reset()
        _check_learning_rates(_named_optimizers(self.model))

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        # On JAX, what is written to the optimizer is lost unless the model
        # was taken from `self.model` in this very hook.
        model = self.model
        optimizers = _named_optimizers(model)
        if self._signature is None:
            # On TensorFlow, a MultiOptimizer that chooses by a function has
            # no optimizers before its first step.
            _check_learning_rates(optimizers)
        for key, optimizer in optimizers:
            logs[key] = _read_learning_rate(optimizer)
        logs["angular_velocity"] = angle = self._observe(model)
        if math.isnan(angle):
            return
        last, self._last_angle = self._last_angle, angle
        if last is not None and abs(angle - last) < self._current_threshold:
            self._drop([optimizer for _, optimizer in optimizers], epoch)

    def _observe(self, model):
        """Take the parameters; return the newest angle, NaN without one."""
        variables = model.trainable_variables
        signature = [(v.path, tuple(v.shape)) for v in variables]
        if signature != self._signature:
            self._clear_history()
            self._signature = signature
        # A copy: JAX donates the arrays of the model to the next step, torch
        # and TensorFlow overwrite them.
        point = [
            np.array(ops.convert_to_numpy(v), dtype="float32")
            for v in variables
        ]
        if not all(np.isfinite(values).all() for values in point):
            self._clear_history()
            return math.nan
        if self._points and all(map(np.array_equal, self._points[-1], point)):
            return math.nan
        points = [*self._points, point]
        self._points = points[-2:]
        return _angle_of_steps(*points) if len(points) == 3 else math.nan

    def _drop(self, optimizers, epoch):
        lowered = [self._lower(optimizer, epoch) for optimizer in optimizers]
        if not any(lowered):
            return
        self.drops.append(epoch)
        self._current_threshold = min(
            self.max_threshold, self._current_threshold / self.factor
        )
        # The steps at the new learning rate begin at the newest point.
        self._clear_history(keep=1)

    def _lower(self, optimizer, epoch):
        """Lower one learning rate; return whether that was possible."""
        old = _read_learning_rate(optimizer)
        new = max(self.min_lr, self.factor * old)
        if new < old:
            _write_learning_rate(optimizer, new)
        # `min_lr`, rounded as the learning rate is, may be what was there.
        new = _read_learning_rate(optimizer)
        if self.verbose and new < old:
            _report(
                f"\nEpoch {epoch + 1}: AutoDrop reducing the learning rate of "
                f"'{optimizer.name}' to {new:g}."
            )
        return new < old


def _angle_of_steps(older, old, new):
    """Return the angle between the steps older-old and old-new, in degrees.

    Points are lists of arrays, one for each variable. Sums are taken in
    float64, in which no step of float32 parameters over- or underflows.
    """
    uu = uv = vv = 0.0
    for x, y, z in zip(older, old, new):
        u = np.subtract(y, x, dtype="float64").ravel()
        v = np.subtract(z, y, dtype="float64").ravel()
        uu += float(u @ u)
        uv += float(u @ v)
        vv += float(v @ v)
    cosine = uv / math.sqrt(uu) / math.sqrt(vv)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def _named_optimizers(model):
    """Return pairs of a log key and an optimizer with a learning rate."""
    optimizer = model.optimizer
    # A LossScaleOptimizer may hold a MultiOptimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(optimizer, "optimizers"):
        return [("learning_rate", optimizer)]
    return [(f"learning_rate_{o.name}", o) for o in optimizer.optimizers]


def _check_learning_rates(named_optimizers):
    """Raise an error if a learning rate cannot be set."""
    for _, optimizer in named_optimizers:
        # Writing what is there finds that out through public names only.
        _write_learning_rate(optimizer, _read_learning_rate(optimizer))


def _read_learning_rate(optimizer):
    return float(ops.convert_to_numpy(optimizer.learning_rate))


def _write_learning_rate(optimizer, value):
    try:
        optimizer.learning_rate = value
    # What Keras raises for a schedule and for any other callable.
    except (TypeError, AttributeError) as error:
        schedule = isinstance(error, TypeError)
        kind = "`LearningRateSchedule`" if schedule else "callable"
        raise ValueError(
            "`AutoDrop` sets the learning rate and expects one that is a "
            f"number. Received: optimizer '{optimizer.name}' with a {kind} "
            "as its `learning_rate`. Pass the optimizer a float instead, "
            "such as `learning_rate=0.1`."
        ) from error


def _report(message):
    if keras.config.is_interactive_logging_enabled():
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()
    else:
        logging.info(message)
