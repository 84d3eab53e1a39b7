"""The drops of a run, those that have an effect."""

import math
import warnings

from keras import ops

from keras_efficient.callbacks.learning_rates import lower_learning_rate
from keras_efficient.callbacks.learning_rates import read_learning_rate
from keras_efficient.callbacks.learning_rates import report


class Drops:
    """Lower learning rates, and count the drops that last.

    A model whose `train_step` has optimizers of its own never steps the one it
    was compiled with. A callback that sets the learning rate by a plan of its
    own takes back what another one does.

    Attributes:
        epochs: List of the epochs of the drops.
        steps: List of the training steps after which they were.
    """

    def __init__(self):
        self.epochs, self.steps = [], []
        self._first = {}  # iterations when training began, by log key
        self._newest = {}  # learning rates after the newest drops, by log key
        self._count = 0  # how many drops that was
        self._warned = set()

    def begin(self, named_optimizers):
        """Note where the optimizers are when training begins."""
        self._first = {
            key: _iterations(optimizer) for key, optimizer in named_optimizers
        }

    def make(self, named_optimizers, factor, min_lr, clock, verbose):
        """Drop the learning rates; return whether one was lowered."""
        lowered = [
            (key, optimizer)
            for key, optimizer in named_optimizers
            if self._steps(key, optimizer)
            and lower_learning_rate(optimizer, factor, min_lr)
        ]
        for key, optimizer in lowered:
            self._newest[key] = read_learning_rate(optimizer)
            if verbose:
                report(
                    f"\nEpoch {clock.epoch + 1}: AutoDrop reducing the "
                    f"learning rate of '{optimizer.name}' to "
                    f"{read_learning_rate(optimizer):g}."
                )
        if lowered:
            self._count += 1
            self.epochs = [*self.epochs, clock.epoch]
            self.steps = [*self.steps, clock.steps]
        return bool(lowered)

    def _steps(self, key, optimizer):
        """Return whether an optimizer has stepped; those that appeared have."""
        if _iterations(optimizer) != self._first.get(key):
            return True
        self._warn(
            "`AutoDrop` does not lower the learning rate of the optimizer "
            f"'{optimizer.name}', which has not taken a step since training "
            "began. `AutoDrop` knows the optimizer that the model was compiled "
            "with; those of a `train_step` of its own are out of its reach."
        )
        return False

    def take_out_undone(self, named_optimizers, epoch):
        """Forget the newest drops if they are undone; warn of it.

        A drop that has lasted for a whole epoch was made.
        """
        for key, optimizer in named_optimizers:
            left = self._newest.get(key, math.inf)
            now = read_learning_rate(optimizer)
            if now > left * (1 + 1e-6):
                self._warn(
                    "`AutoDrop` dropped the learning rate of the optimizer "
                    f"'{optimizer.name}' to {left:g}, and it was set to "
                    f"{now:g} since, by another callback such as "
                    "`LearningRateScheduler`. Use only one that sets the "
                    "learning rate."
                )
                kept = len(self.epochs) - self._count
                self.epochs, self.steps = self.epochs[:kept], self.steps[:kept]
                self._newest, self._count = {}, 0
                return
        if self._count and epoch > self.epochs[-1]:
            self._newest, self._count = {}, 0

    def _warn(self, message):
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)


def _iterations(optimizer):
    return int(ops.convert_to_numpy(optimizer.iterations))
