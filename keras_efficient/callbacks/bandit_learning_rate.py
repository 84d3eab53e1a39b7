import math

import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.callbacks.learning_rate_callback import (
    LearningRateCallback,
)
from keras_efficient.callbacks.learning_rates import Count
from keras_efficient.callbacks.learning_rates import named_optimizers
from keras_efficient.callbacks.learning_rates import report


class BanditLearningRate(LearningRateCallback):
    """Let a bandit choose the learning rate while the model trains.

    Each candidate learning rate is an arm. An arm is held for
    `steps_per_pull` steps and earns what the loss fell by. Old rewards fade,
    so that the choice follows the training. The optimizer keeps its state
    across swaps. With L_t the mean loss in pull t, j its arm and g the
    `discount`:

    ```
    r_t = (L_{t-1} - L_t) / (|L_{t-1}| + |L_t|)
    N_i <- g N_i + [i = j],   R_i <- g R_i + [i = j] r_t
    next arm = argmax_i  R_i / N_i + B sqrt(ln(sum N) / N_i)
    ```

    This is discounted UCB. B, the noise of the rewards, is estimated: the
    discounted root mean square of the changes from one reward of an arm to its
    next, over sqrt(2). Every arm is tried once at first, the smallest first.

    A pull is taken back if its loss is not finite (it earns -1) or exceeds
    `max_growth` times the loss before. Weights and optimizer return to where
    it began, one pull further if that happens twice in a row, and the metrics
    of the epoch start anew. The loss to compare with grows as much, or one
    lucky pull would forbid all that follow. In the first round any growth is
    taken back: a network that a large rate has killed has a loss hardly above
    that of one which has learned nothing yet.

    A bandit sees no further than one pull. A small learning rate that removes
    the noise of a large one earns at once what the large one prepared.
    Expect fast progress early, and less than a good schedule in the end
    (`guides/benchmarks.md`). Allow for tens of pulls for each candidate. Leave
    out rates far too large: what they have killed looks as if untrained.

    The cost is two copies of the weights and of the optimizer's variables in
    host memory, one copied in each pull. Keras runs callbacks synchronously.

    Each epoch adds to the logs:

    - `learning_rate` (in a `MultiOptimizer` `learning_rate_{optimizer.name}`);
    - `arm`, its index, and `taken_back`, the pulls taken back so far;
    - for each candidate `share_{rate:g}`, its part in the discounted pulls, and
      `reward_{rate:g}`, its mean reward, NaN without one.

    With `keras.callbacks.BackupAndRestore`, listed after this callback, a run
    that was interrupted goes on with what the bandit had learned.

    Args:
        learning_rates: List of two or more different positive floats, best
            spaced evenly on a logarithmic scale.
        steps_per_pull: Positive integer, steps an arm is held for. Longer
            pulls measure better and choose less often. Defaults to `20`.
        discount: Float in (0, 1), what a reward is worth one pull later.
            Defaults to `0.99`.
        max_growth: Float above 1, see above. Large rates that are tried do
            harm up to this bound. Defaults to `1.1`.
        verbose: `0` or `1`. Whether to report what is taken back. Defaults
            to `0`.

    Raises:
        ValueError: an argument is outside its range, or, when training
            begins, the learning rate is a schedule or another callable.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(), loss="mse")
    x, y = keras.random.normal((640, 8)), keras.random.normal((640, 1))
    bandit = keras_efficient.callbacks.BanditLearningRate(
        [0.001, 0.01, 0.1], steps_per_pull=5
    )
    history = model.fit(x, y, epochs=5, callbacks=[bandit])
    print(history.history["share_0.01"])
    ```

    Reference:
        - [Bache et al., 2014](https://arxiv.org/abs/1412.6599). The paper
          guards a step by a line search; here a whole pull is taken back.
    """

    STATE = "_bandit_learning_rate"

    def __init__(
        self,
        learning_rates,
        steps_per_pull=20,
        discount=0.99,
        max_growth=1.1,
        verbose=0,
    ):
        super().__init__()
        self.learning_rates = sorted(float(rate) for rate in learning_rates)
        self.steps_per_pull = steps_per_pull
        self.discount = discount
        self.max_growth = max_growth
        self.verbose = verbose
        self._validate()
        self._reset()

    def _validate(self):
        rates = self.learning_rates
        is_right = len(set(rates)) == len(rates) >= 2
        is_right = is_right and 0 < rates[0] <= rates[-1] < math.inf
        expected = "two or more different positive floats"
        self._check("learning_rates", is_right, expected)
        self._check("steps_per_pull", self.steps_per_pull >= 1, "1 or more")
        self._check("discount", 0 < self.discount < 1, "in (0, 1)")
        is_growth = 1 < self.max_growth < math.inf
        self._check("max_growth", is_growth, "above 1, finite")
        self._check("verbose", self.verbose in (0, 1), "0 or 1")

    def _reset(self):
        arms = len(self.learning_rates)
        # What a run that was interrupted goes on with.
        self._memory = {
            "pulls": [0.0] * arms,
            "rewards": [0.0] * arms,
            "last_rewards": [None] * arms,
            "changes": [0.0, 0.0],  # discounted: how many, sum of squares
            "arm": 0,
            "loss_before": None,
            "loss_sum": 0.0,
            "steps": 0,
            "taken_back": 0,
        }
        self._snapshots = []
        self._was_taken_back = False
        self._start_epoch()

    def _start_epoch(self):
        """Forget the running mean of the loss, which starts anew."""
        self._offset = self._steps = self._steps_read = 0
        self._mean_read = 0.0

    def _state(self):
        return {}, self._memory

    def _restore(self, arrays, facts):
        self._memory.update(facts)

    def on_epoch_begin(self, epoch, logs=None):
        self._start_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        if not self._snapshots:
            # The first pull, or what is left of one that was interrupted.
            model = self.model
            self._snapshots.append(_copies(model))
            self._set_rate(model)

    def on_train_batch_end(self, batch, logs=None):
        steps = batch + 1
        unread = steps - self._offset - self._steps_read
        if self._memory["steps"] + unread < self.steps_per_pull:
            self._steps = steps
            return
        self._read_loss(logs, steps)
        self._end_pull(self.model)

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        model, memory = self.model, self._memory
        if self._steps == self._offset:
            # The last steps were taken back, and the metrics are empty.
            logs["loss"] = memory["loss_before"]
        else:
            self._read_loss(logs, self._steps)
        for key, optimizer in named_optimizers(model):
            logs[key] = float(ops.convert_to_numpy(optimizer.learning_rate))
        logs["arm"] = Count(memory["arm"])
        logs["taken_back"] = Count(memory["taken_back"])
        total = sum(memory["pulls"])
        for rate, pulls, reward in zip(
            self.learning_rates, memory["pulls"], memory["rewards"]
        ):
            logs[f"share_{rate:g}"] = pulls / total if total else 0.0
            logs[f"reward_{rate:g}"] = reward / pulls if pulls else math.nan

    def _read_loss(self, logs, steps):
        """Add the loss since the last reading; logs hold running means."""
        steps -= self._offset
        # Each process of PyTorch has the loss of its own examples.
        mean = backend.mean_of_processes(float(logs["loss"]))
        self._memory["loss_sum"] += (
            steps * mean - self._steps_read * self._mean_read
        )
        self._memory["steps"] += steps - self._steps_read
        self._steps_read, self._mean_read = steps, mean

    def _set_rate(self, model):
        for _, optimizer in named_optimizers(model):
            optimizer.learning_rate = self.learning_rates[self._memory["arm"]]

    def _end_pull(self, model):
        memory = self._memory
        loss = memory["loss_sum"] / memory["steps"]
        memory["loss_sum"], memory["steps"] = 0.0, 0
        before = memory["loss_before"]
        if before is None and math.isfinite(loss):
            before = loss  # nothing to compare with
        reward = -1.0
        if before is not None and math.isfinite(loss):
            size = abs(before) + abs(loss)
            reward = (before - loss) / size if size else 0.0
        bound = -math.inf
        if before is not None:
            growth = self.max_growth - 1 if all(memory["pulls"]) else 0.0
            bound = before + growth * abs(before)
        if not loss <= bound:
            if before is not None:
                # Or one lucky pull would forbid all that follow.
                memory["loss_before"] = bound
            self._take_back(model)
            self._earn(reward)
            self._set_rate(model)
            return
        memory["loss_before"] = loss
        arm = memory["arm"]
        last, memory["last_rewards"][arm] = memory["last_rewards"][arm], reward
        if last is not None:
            memory["changes"] = [
                self.discount * old + new
                for old, new in zip(
                    memory["changes"], (1, (reward - last) ** 2)
                )
            ]
        self._was_taken_back = False
        self._snapshots = [*self._snapshots[-1:], _copies(model)]
        self._earn(reward)
        self._set_rate(model)

    def _take_back(self, model):
        if self._was_taken_back and len(self._snapshots) > 1:
            # Whatever was wrong had begun before this pull.
            self._snapshots.pop()
        self._was_taken_back = True
        self._memory["taken_back"] += 1
        for variable, value in zip(_variables(model), self._snapshots[-1]):
            variable.assign(value)
        # The running means of the epoch hold what was taken back.
        model.reset_metrics()
        self._offset, self._steps_read, self._mean_read = self._steps, 0, 0.0
        if self.verbose:
            rate = self.learning_rates[self._memory["arm"]]
            report(
                "\nBanditLearningRate taking back the steps of a pull at the "
                f"learning rate {rate:g}."
            )

    def _earn(self, reward):
        """Give the reward to the arm, and choose the next."""
        memory = self._memory
        for key, value in (("pulls", 1.0), ("rewards", reward)):
            memory[key] = [self.discount * old for old in memory[key]]
            memory[key][memory["arm"]] += value
        pulls = memory["pulls"]
        if not all(pulls):
            memory["arm"] = pulls.index(0.0)
            return
        count, squares = memory["changes"]
        scale = math.sqrt(squares / count / 2) if count else 0.0
        # Less than one pull in all, with a small discount, is no negative one.
        exploration = math.log(max(1.0, sum(pulls)))
        bounds = [
            rewards / n + scale * math.sqrt(exploration / n)
            for rewards, n in zip(memory["rewards"], pulls)
        ]
        memory["arm"] = bounds.index(max(bounds))


def _variables(model):
    """Return what a step changes: weights and the state of the optimizer."""
    return [*model.variables, *model.optimizer.variables]


def _copies(model):
    return [np.array(ops.convert_to_numpy(v)) for v in _variables(model)]
