import math

from keras_efficient.callbacks.angular_velocity import AngularVelocity
from keras_efficient.callbacks.drop_rules import DEFAULTS
from keras_efficient.callbacks.drop_rules import checks
from keras_efficient.callbacks.drop_rules import make_rule
from keras_efficient.callbacks.drop_rules import with_defaults
from keras_efficient.callbacks.drops import Drops
from keras_efficient.callbacks.learning_rate_callback import (
    LearningRateCallback,
)
from keras_efficient.callbacks.learning_rates import Count
from keras_efficient.callbacks.learning_rates import WarmUp
from keras_efficient.callbacks.learning_rates import check_learning_rates
from keras_efficient.callbacks.learning_rates import named_optimizers
from keras_efficient.callbacks.learning_rates import read_learning_rate
from keras_efficient.callbacks.run_clock import RunClock

LAST_DROP = 0.9  # of a run, in mode "auto"


class AutoDrop(LearningRateCallback):
    """Drop the learning rate when the direction of training settles.

    It takes the place of a schedule, without validation data and, by default,
    without anything to choose: start at the learning rate that trains fastest.
    Train in one call of `fit`, or go on with `initial_epoch` and the final
    number of `epochs`. The rate is dropped wherever it has done its work, and
    once more after nine tenths of the run, since the noise of a learning rate
    is of no use thereafter.

    Each epoch adds to the logs:

    - `drops`, how many there were so far;
    - `learning_rate` at the end of the epoch, before a drop there. With a
      `keras.optimizers.MultiOptimizer`, all of whose optimizers are dropped,
      this is `learning_rate_{optimizer.name}`;
    - `angular_velocity`, the mean over its windows, NaN when there is none.

    Pass callbacks as a list. Put this one before
    `keras.callbacks.SwapEMAWeights`, which exchanges the parameters, and before
    `keras.callbacks.BackupAndRestore`: a run that was interrupted then goes on
    with the same drops at the same steps. Use no other callback that sets the
    learning rate: drops that one takes back are not counted, and warned of.
    The same holds for an optimizer that never steps, as that of a model whose
    `train_step` has others.

    The cost is two float32 copies of the trainable parameters in host memory,
    three while a window ends or has samples, and one pass over them in each
    window.

    How it decides. The angular velocity is the angle between successive steps
    of the parameters, all trainable ones as one vector: 0 degrees is a straight
    walk, 90 a random one. It rises while training at a learning rate gains
    ground, and levels off when it gains no more. A step leads from one window
    to the next. The angle is exact for steps however short. A window that
    moves nothing is passed over. Parameters that are not finite clear the
    history. A drop starts it again, and needs a learning rate above `min_lr`.

    **`mode="auto"`** is ours. A window is an epoch, or such a part of one that
    `fit` has at least 50, and no shorter than 20 steps. Let a be the older and
    b the newer half of the last 12 to 16 angles since the last drop:

    ```
    noise = sqrt(mean((w_{i+1} - w_i)^2) / 2)
    error = noise sqrt(1 / |a| + 1 / |b|)
    drop if  mean(b) - mean(a) <= error  and  mean(b) + error >= 90
    ```

    Below 90 degrees steps still point the same way: there a level stretch is
    the passage from one slope to the next. No angle tells when a run is to
    end, hence the drop at the first step past nine tenths of it; there is none
    where no step is left, as in a run of less than ten.
    `guides/benchmarks.md` tells what else was tried.

    **`mode="epoch"`** is the rule of 2021, with w_t the angle of the steps
    between the parameters after epochs:

    ```
    if |w_t - w_{t-1}| < threshold:
        learning_rate <- max(min_lr, factor * learning_rate)
        threshold     <- min(max_threshold, threshold / factor)
    ```

    The first drop is possible after four epochs. We follow the rule; the
    authors' code waits 20 "extra epochs", loads an average of parameters, keeps
    its history at a drop, and takes parameters after an epoch's first update.

    **`mode="window"`** is the rule of 2024. It takes the mean of the parameters
    over windows of `window_steps` steps, and smooths angles over the last 10:

    ```
    C_i = sum_j K_j w_{i-j} / sum_j K_j,    K_j = exp(-j^2 / (2 sigma^2)),
    sigma = min(std(w), 5);    drop if C_i - C_{i-1} < threshold
    ```

    The difference is signed, as printed: a fall drops too. As we read it,
    angles are between steps, not means; the kernel is over time, has the minus
    sign that is missing in print, and is that of the newest angle. A drop needs
    two C since the last. The mean is that of 4 samples of a window.

    Attributes:
        drops: List of the epochs of the current (or last) `fit` in which the
            learning rate was dropped, from 0 as in `History.epoch`.
        drop_steps: List of the training steps after which it was.

    Args:
        mode: `"auto"`, `"epoch"` or `"window"`. Defaults to `"auto"`.
        factor: Float in (0, 1), what a drop multiplies the learning rate by.
            Defaults to `0.3` in mode "auto", `0.2` in "epoch", `0.95` in
            "window".
        threshold: Float in (0, 180], degrees, for the modes "epoch" (defaults
            to `0.01`) and "window" (to `0.1`). The smaller the model and the
            noisier its steps, the larger it must be.
        max_threshold: Float in [threshold, 180], degrees. In mode "epoch" the
            threshold does not grow beyond it. Defaults to `1.0`.
        window_steps: Positive integer, for the modes "window" (defaults to
            `64`) and "auto" (see above).
        min_lr: Non-negative float, below which the learning rate is not
            dropped. Defaults to `0.0`.
        warmup_steps: Integer. The learning rate rises linearly over so many
            steps at first, which are not observed. Defaults to `0`.
        verbose: `0` or `1`. Whether to report each drop. Defaults to `0`.

    Raises:
        ValueError: an argument is outside its range, or, when training
            begins, the learning rate is a schedule or another callable, or
            the model has no optimizer.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    x, y = keras.random.normal((64, 8)), keras.random.normal((64, 1))
    auto_drop = keras_efficient.callbacks.AutoDrop()
    history = model.fit(x, y, epochs=50, callbacks=[auto_drop])
    print(history.history["angular_velocity"], auto_drop.drops)
    ```

    Reference:
        - [Teng et al., 2021](https://arxiv.org/abs/2111.15317), mode "epoch"
        - [Wang et al., 2024](
          https://proceedings.mlr.press/v244/wang24e.html), mode "window"
    """

    STATE = "_auto_drop"

    def __init__(
        self,
        mode="auto",
        factor=None,
        threshold=None,
        max_threshold=1.0,
        window_steps=None,
        min_lr=0.0,
        warmup_steps=0,
        verbose=0,
    ):
        super().__init__()
        self.mode = mode
        self.max_threshold = max_threshold
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.verbose = verbose
        self.factor, self.threshold, self.window_steps = with_defaults(
            mode, (factor, threshold, window_steps)
        )
        self._validate()
        self._reset()

    def _validate(self):
        self._check("mode", self.mode in DEFAULTS, list(DEFAULTS))
        for name, is_right, expected in checks(self):
            self._check(name, is_right, expected)

    def _reset(self):
        self._drops = Drops()
        self._clock, self._velocity = RunClock(), AngularVelocity()
        self._warm_up = WarmUp(self.warmup_steps)
        self._rule = make_rule(
            self.mode, self.factor, self.threshold, self.max_threshold
        )
        self._angles = []  # of the current epoch
        self._window_start = None
        self._last_is_done = False

    @property
    def drops(self):
        return self._drops.epochs

    @property
    def drop_steps(self):
        return self._drops.steps

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._drops.begin(named_optimizers(self.model))

    def on_train_end(self, logs=None):
        optimizers = named_optimizers(self.model)
        self._drops.take_out_undone(optimizers, self._clock.epoch)
        super().on_train_end(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._clock.begin_epoch(epoch, self.params)

    def on_train_batch_begin(self, batch, logs=None):
        self._clock.begin_batch(batch)
        if self._warm_up.is_on(self._clock.steps):
            self._warm_up.set_rate(self.model, self._clock.steps)
        if self.mode != "epoch":
            self._watch()

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        self._clock.end_epoch(epoch, self.params)
        optimizers = named_optimizers(self.model)
        # On TensorFlow, some MultiOptimizers are empty before the first step.
        check_learning_rates(optimizers, "AutoDrop")
        for key, optimizer in optimizers:
            logs[key] = read_learning_rate(optimizer)
        self._drops.take_out_undone(optimizers, epoch)
        self._watch(is_epoch_end=True)
        self._clock.close_epoch()
        angles, self._angles = self._angles, []
        mean = math.fsum(angles) / len(angles) if angles else math.nan
        logs["angular_velocity"] = mean
        logs["drops"] = Count(len(self.drops))

    def _watch(self, is_epoch_end=False):
        """Take a sample, end a window and drop, each if it is time."""
        if self._clock.steps < self.warmup_steps:
            return
        self._watch_window(is_epoch_end)
        if self.mode != "auto" or self._last_is_done:
            return
        if self._clock.is_first_time(LAST_DROP, self.drop_steps):
            self._last_is_done = True
            self._drop()

    def _watch_window(self, is_epoch_end):
        steps = self._clock.steps
        if self._window_start is None:
            self._window_start = steps
        length, samples = self._clock.window(
            self.mode, self.window_steps, is_epoch_end
        )
        elapsed = steps - self._window_start
        if elapsed * samples < length * (self._velocity.samples + 1):
            return
        self._velocity.sample(self.model.trainable_variables)
        if elapsed < length:
            return
        self._window_start = steps
        angle = self._velocity.close()
        if len(self._velocity.points) <= 1:
            self._rule.clear()
        if not math.isnan(angle):
            self._angles.append(angle)
            if self._rule.observe(angle):
                self._drop()

    def _drop(self):
        if self.mode == "auto" and self._clock.is_over():
            return  # it would be for a step that does not come
        steps = self._clock.steps
        optimizers = named_optimizers(self.model)
        rates = self.factor, self.min_lr
        if not self._drops.make(optimizers, *rates, self._clock, self.verbose):
            return
        self._rule.dropped()
        # The steps at the new learning rate begin at the newest point.
        if self._window_start != steps:  # a window is open
            self._window_start = steps
            self._velocity.clear()
            self._velocity.sample(self.model.trainable_variables)
            self._velocity.close()
        self._velocity.clear(keep=1)

    def _state(self):
        return self._velocity.state(), {
            "mode": self.mode,
            "lists": [self.drops, self.drop_steps],
            "window_start": self._window_start,
            "clock": self._clock.state(),
            "full_rates": self._warm_up.full_rates,
            "rule": vars(self._rule),
        }

    def _restore(self, arrays, facts):
        if facts["mode"] != self.mode:
            return
        self._drops.epochs, self._drops.steps = facts["lists"]
        self._window_start = facts["window_start"]
        self._warm_up.full_rates = facts["full_rates"]
        vars(self._clock).update(facts["clock"])
        vars(self._rule).update(facts["rule"])
        self._velocity.restore(arrays)
