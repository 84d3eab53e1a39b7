import operator
import re

from keras_efficient.backend.arguments import check_integers
from keras_efficient.callbacks.average_weights import RunningMean
from keras_efficient.callbacks.average_weights import assign_all
from keras_efficient.callbacks.average_weights import averaged
from keras_efficient.callbacks.average_weights import host_copies
from keras_efficient.callbacks.callback_state import StatefulCallback
from keras_efficient.callbacks.recompute_batch_norm import norms_with_statistics
from keras_efficient.callbacks.recompute_batch_norm import recompute_batch_norm

COMPARE = {">": operator.gt, "<": operator.lt}


class ParallelAverage(StatefulCallback):
    """Average workers that go on from one point, each by itself (SWAP).

    ```
    1  one model is trained, until `switch`
    2  `workers` times: from those weights and statistics, with a fresh
       optimizer and other random numbers, `worker_epochs` epochs
    3  w = mean of what the workers came to;  statistics of batch
       normalizations are computed anew over `recompute`
    ```

    The mean generalizes as training in small batches does; on several devices
    the workers of phase 2 need nothing of each other. Here they run one after
    the other: on one device no time is saved, and `fit` needs
    `switch_epoch + workers * worker_epochs` epochs. It ends by itself after
    the last worker. On several, train workers in processes of their own and
    use `keras_efficient.utils.average_weights`.

    Phase 1 may have larger batches: with `keras_efficient.optimizers
    .AdaptiveBatch`, `micro_batches` sets those of phase 2.

    When the paper switches, its rates and whether moments are kept is not
    known to us: moments begin at zero, statistics are those of the switch.

    Logs of each epoch get `worker`, 0 in phase 1 and then the worker's number;
    those of a worker's last epoch are its own. With `evaluate`, the last
    epoch gets the mean's, `average_loss` and so on. Two copies of the weights
    are on the host, and in the files of `keras.callbacks.BackupAndRestore`: a
    run that was interrupted goes on with the same worker. Put this callback
    before that one.

    Args:
        workers: Integer, how many. Defaults to `4`.
        switch: String such as `"accuracy>0.98"`, a condition on a log of an
            epoch, after which phase 2 begins. Defaults to `None`.
        switch_epoch: Integer, the number of epochs of phase 1 at most.
            Defaults to `None`. One of the two must be given.
        worker_epochs: Integer. Defaults to `5`.
        learning_rate: Float, or a function from the epoch of a worker, counted
            from 0, to the learning rate. Defaults to `None`: as it is at the
            switch.
        recompute: Dataset for `keras_efficient.utils.recompute_batch_norm`.
            Defaults to `None`, for models without such layers.
        evaluate: Tuple `(x, y)` or dataset that the mean is evaluated on.
            Defaults to `None`.
        micro_batches: Integer, of phase 2, if the optimizer is an
            `AdaptiveBatch`. Defaults to `None`.

    Attributes:
        workers_done: Integer, how many workers are in the mean.

    Raises:
        ValueError: an argument is outside its range; in `fit`, if epochs are
            too few, a log is missing, or batch normalizations need
            `recompute`.

    Example:

    ```python
    average = keras_efficient.callbacks.ParallelAverage(
        workers=2, switch_epoch=1, worker_epochs=1
    )
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = keras.random.normal((32, 4))
    model.fit(x, x[:, :1], epochs=3, callbacks=[average], verbose=0)
    ```

    Reference:
        - [Gupta et al., 2020](https://arxiv.org/abs/2001.02312)
    """

    STATE = "_parallel_average"

    def __init__(
        self,
        workers=4,
        switch=None,
        switch_epoch=None,
        worker_epochs=5,
        learning_rate=None,
        recompute=None,
        evaluate=None,
        micro_batches=None,
    ):
        super().__init__()
        check_integers(1, workers=workers, worker_epochs=worker_epochs)
        if switch_epoch is not None:
            check_integers(1, switch_epoch=switch_epoch)
        if micro_batches is not None:
            check_integers(1, micro_batches=micro_batches)
        if switch is None and switch_epoch is None:
            raise ValueError(
                "`switch` or `switch_epoch` must say when phase 2 begins. "
                f"Received: switch={switch}, switch_epoch={switch_epoch}"
            )
        self.switch = switch and _condition(switch)
        self.switch_epoch = switch_epoch
        self.workers = workers
        self.worker_epochs = worker_epochs
        self.learning_rate = learning_rate
        self.recompute = recompute
        self.evaluate = evaluate
        self.micro_batches = micro_batches
        self._reset()

    def _reset(self):
        self.workers_done = 0
        self._epoch_of_worker = None  # phase 1
        self._start = self._mean = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        epochs = self.params.get("epochs", 0)
        needed = self.workers * self.worker_epochs
        needed += self.switch_epoch or 1
        if epochs < needed:
            raise ValueError(
                f"`epochs` of `fit` must be at least {needed}: phase 1, and "
                f"{self.workers} workers of {self.worker_epochs} epochs, one "
                f"after the other. Received: epochs={epochs}"
            )
        if norms_with_statistics(self.model) and self.recompute is None:
            raise ValueError(
                "`recompute` must be the training data: the mean of the "
                f"weights of '{self.model.name}' needs statistics of batch "
                "normalizations of its own. Received: recompute=None"
            )

    def on_epoch_begin(self, epoch, logs=None):
        if self._epoch_of_worker is not None and callable(self.learning_rate):
            rate = float(self.learning_rate(self._epoch_of_worker))
            self.model.optimizer.learning_rate = rate

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self._epoch_of_worker is None:
            logs["worker"] = 0
            if self._is_time(epoch, logs):
                self._start = host_copies(averaged(self.model))
                self._mean = RunningMean(self.model)
                self._begin_worker()
            return
        logs["worker"] = self.workers_done + 1
        self._epoch_of_worker += 1
        if self._epoch_of_worker < self.worker_epochs:
            return
        self._mean.add(self.model)
        self.workers_done += 1
        assign_all(averaged(self.model), self._start)
        if self.workers_done < self.workers:
            self._begin_worker()
        else:
            self._finish(logs)

    def _is_time(self, epoch, logs):
        if self.switch_epoch and epoch + 1 >= self.switch_epoch:
            return True
        if self.switch is None:
            return False
        name, compare, border = self.switch
        if name not in logs:
            raise ValueError(
                f"`switch` must be on a log of an epoch. Received: '{name}'. "
                f"The logs are {sorted(logs)}"
            )
        return compare(logs[name], border)

    def _begin_worker(self):
        """Start from the switch: its weights are there already."""
        self._epoch_of_worker = 0
        optimizer = self.model.optimizer
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(self.model.trainable_variables)
        assign_all(optimizer.variables, host_copies(fresh.variables))
        if self.learning_rate is not None and not callable(self.learning_rate):
            optimizer.learning_rate = self.learning_rate
        if self.micro_batches is not None:
            optimizer.micro_batches.assign(self.micro_batches)

    def _finish(self, logs):
        self._mean.write()
        if norms_with_statistics(self.model):
            recompute_batch_norm(self.model, self.recompute)
        if self.evaluate is not None:
            data = self.evaluate
            data = data if isinstance(data, tuple) else (data,)
            found = self.model.evaluate(*data, return_dict=True, verbose=0)
            logs.update({f"average_{k}": v for k, v in found.items()})
        self._start = self._mean = None
        self._epoch_of_worker = None
        self.model.stop_training = True

    def _state(self):
        arrays = {}
        if self._epoch_of_worker is not None:
            for i, value in enumerate(self._start):
                arrays[f"start_{i}"] = value
            for i, value in enumerate(self._mean.values or []):
                arrays[f"mean_{i}"] = value
        return arrays, {
            "workers_done": self.workers_done,
            "epoch_of_worker": self._epoch_of_worker,
        }

    def _restore(self, arrays, facts):
        self.workers_done = facts["workers_done"]
        self._epoch_of_worker = facts["epoch_of_worker"]
        if self._epoch_of_worker is None:
            return
        number = range(len(averaged(self.model)))
        self._start = [arrays[f"start_{i}"] for i in number]
        self._mean = RunningMean(self.model)
        if self.workers_done:
            self._mean.values = [arrays[f"mean_{i}"] for i in number]
            self._mean.count = self.workers_done


def _condition(text):
    """Return the name, the comparison and the number in a text."""
    found = re.fullmatch(r"\s*(\w+)\s*([<>])\s*(\S+)\s*", str(text))
    try:
        return found[1], COMPARE[found[2]], float(found[3])
    except (TypeError, ValueError):
        raise ValueError(
            '`switch` must be a condition such as "accuracy>0.98". '
            f"Received: switch={text!r}"
        ) from None
