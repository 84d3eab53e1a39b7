import math

WINDOW_SAMPLES = 4
RUN_WINDOWS = 50  # at least, in mode "auto"
SHORTEST_WINDOW = 20  # steps: twice as far as a momentum of 0.9 reaches


class RunClock:
    """Count the steps of a `fit`, and know where in the run they are.

    The beginning of a batch is the end of the one before, and the end of an
    epoch that of its last. Hooks there need none at the end of each batch,
    which would switch off the asynchronous dispatch of all callbacks.

    Attributes:
        steps: Integer, training steps done, of this `fit` and of those it was
            resumed from.
        epoch: Integer, the current epoch, from 0.
    """

    def __init__(self):
        self.steps = self.epoch = 0
        self._epoch_start = self._epoch_steps = 0

    def begin_epoch(self, epoch, params):
        self.epoch = epoch
        self._params = params or {}

    def begin_batch(self, batch):
        self.steps = self._epoch_start + batch

    def end_epoch(self, epoch, params):
        """Move to the end of the epoch, `epoch` still being the current."""
        self.begin_epoch(epoch, params)
        # Data of unknown size end with a batch that begins and is not there;
        # on torch there is none, and one step is not counted.
        done = self.steps - self._epoch_start
        self._epoch_steps = self._params.get("steps") or max(1, done)
        self.steps = self._epoch_start + self._epoch_steps

    def close_epoch(self):
        self._epoch_start = self.steps

    def epoch_steps(self):
        """Return the steps of an epoch, 0 while they are not known."""
        return self._params.get("steps") or self._epoch_steps

    def epochs(self):
        """Return the number of epochs, those before `initial_epoch` too."""
        return self._params.get("epochs", 1)

    def is_first_time(self, part, last):
        """Return whether so large a part of the run is done for the first time.

        It was not yet at any number of steps that the list `last` holds.
        """
        done, total = self._progress()
        since = done - round(part * total, 6)  # 0.9 has no exact float
        if since < 0 or not total:
            return False
        return all(self.steps - steps > since for steps in last)

    def is_over(self):
        """Return whether it is known that no step is left."""
        done, total = self._progress()
        return 0 < total <= done

    def _progress(self):
        """Return the steps done and those of the run, 0 if not known."""
        an_epoch = self.epoch_steps()
        done = self.epoch * an_epoch + self.steps - self._epoch_start
        return done, self._params.get("epochs", 0) * an_epoch

    def window(self, mode, window_steps, is_epoch_end):
        """Return the length of a window and how many samples it has."""
        if mode == "epoch":
            return 0, 1
        if mode == "window":
            return window_steps, WINDOW_SAMPLES
        if window_steps:
            return window_steps, 1
        steps = self.epoch_steps()
        if not steps:  # not known before the end of the first epoch
            return (0 if is_epoch_end else math.inf), 1
        parts = math.ceil(RUN_WINDOWS / self.epochs())
        return max(SHORTEST_WINDOW, round(steps / parts)), 1

    def state(self):
        """Return what a run that was interrupted goes on with."""
        return {
            "_epoch_start": self._epoch_start,
            "_epoch_steps": self._epoch_steps,
        }
