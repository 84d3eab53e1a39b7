from keras_efficient.callbacks.learning_rates import named_optimizers
from keras_efficient.callbacks.learning_rates import read_learning_rate


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
