from keras_efficient.callbacks.callback_state import StatefulCallback
from keras_efficient.callbacks.learning_rates import check_learning_rates
from keras_efficient.callbacks.learning_rates import named_optimizers


class LearningRateCallback(StatefulCallback):
    """Base class: set learning rates, and go on after an interruption."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        check_learning_rates(named_optimizers(self.model), type(self).__name__)
