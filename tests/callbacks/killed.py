import keras


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    """End a run in the midst of an epoch, after its fourth batch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.is_last = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.is_last and batch == 3:
            raise Killed
