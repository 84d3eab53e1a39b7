import math

import numpy as np

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.callbacks.callback_state import StatefulCallback
from keras_efficient.callbacks.power_law import fit_power_law


class LearningCurve(StatefulCallback):
    """Predict where a learning curve leads, and stop when little is left.

    It saves the epochs that would gain less than a tolerance; it saves no
    memory, and keeps the weights that the last epoch had.

    After each epoch, from the third, the observations so far are fitted by

    ```
    A(x) = asymptote - a x^(-b),   a >= 0,   0.05 <= b <= 5
    ```

    with x the number of epochs done. For a loss the curve is upside down.
    Each epoch adds to the logs `asymptote`, `predicted_{monitor}`, the
    curve at `horizon`, and `remaining`, how far it still is from the asymptote
    to the curve now. Training stops when for `patience` epochs

    ```
    remaining <= tolerance,   or   the curve at horizon misses target
    ```

    The first is the layer of convergence of the paper, which also asks for the
    level from which asymptotes fall; its body was not at hand, and `patience`
    takes the place of that. The curve holds at a constant learning rate only:
    a drop is a step that no power law has.

    Put it before `keras.callbacks.BackupAndRestore`: a run that was
    interrupted goes on with what it has seen.

    Args:
        monitor: Name among the logs. Defaults to `"val_accuracy"`.
        tolerance: Positive float, in the unit of `monitor`. Defaults to
            `0.005`.
        target: Float that `monitor` is to reach. Defaults to `None`, none.
        horizon: Positive integer, the epoch to predict. Defaults to `None`,
            the last one of `fit`.
        patience: Positive integer, of epochs in a row. Defaults to `3`.
        mode: `"max"`, `"min"`, or `"auto"`: `"min"` where the name holds
            "loss" or "error". Defaults to `"auto"`.
        limit: Float, the best that `monitor` can be. Defaults to `None`, `1.0`
            for mode `"max"`, `0.0` for `"min"`.
        stop: Whether to stop training. Defaults to `True`.

    Raises:
        ValueError: an argument is outside its range, or the logs do not hold
            `monitor`.

    Example:

    ```python
    x = np.random.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = keras_efficient.callbacks.LearningCurve("loss", tolerance=0.01)
    history = model.fit(x, x[:, :1], epochs=50, callbacks=[callback])
    print(history.history["asymptote"])
    ```

    Reference:
        - [Vilares Ferro et al., 2024](https://arxiv.org/abs/2402.02515)
    """

    STATE = "_learning_curve"

    def __init__(
        self,
        monitor="val_accuracy",
        tolerance=0.005,
        target=None,
        horizon=None,
        patience=3,
        mode="auto",
        limit=None,
        stop=True,
    ):
        super().__init__()
        self.monitor, self.tolerance, self.target = monitor, tolerance, target
        self.horizon, self.patience, self.mode = horizon, patience, mode
        self.stop = stop
        self._check("mode", mode in ("auto", "max", "min"), "max, min or auto")
        check_numbers("(0, inf)", tolerance=tolerance)
        check_integers(1, patience=patience)
        if horizon is not None:
            check_integers(1, horizon=horizon)
        for name, value in {"target": target, "limit": limit}.items():
            if value is not None:
                check_numbers("(-inf, inf)", **{name: value})
        if mode == "auto":
            falls = any(word in monitor for word in ("loss", "error"))
            self.mode = "min" if falls else "max"
        self._sign = 1 if self.mode == "max" else -1
        if limit is None:
            limit = 1.0 if self.mode == "max" else 0.0
        self.limit = limit
        self._reset()

    def _reset(self):
        self._epochs, self._values, self._waited = [], [], 0

    def on_epoch_end(self, epoch, logs=None):
        if not logs or self.monitor not in logs:
            raise ValueError(
                f"`LearningCurve` watches {self.monitor!r}, which must be in "
                f"the logs. Received: {sorted(logs or {})}"
            )
        self._epochs.append(epoch + 1)
        self._values.append(self._sign * float(logs[self.monitor]))
        found = self._predict()
        logs.update(found)
        self._waited = self._waited + 1 if self._is_over(found) else 0
        if self.stop and self._waited >= self.patience:
            self.model.stop_training = True

    def _predict(self):
        names = ("asymptote", f"predicted_{self.monitor}", "remaining")
        x, y = np.array(self._epochs), np.array(self._values)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        if len(x) < 3:
            return dict.fromkeys(names, math.nan)
        c, a, b = fit_power_law(x, y, self._sign * self.limit)
        horizon = self.horizon or self.params["epochs"]
        at_horizon = c - a * float(horizon) ** -b
        remaining = a * float(self._epochs[-1]) ** -b
        values = (self._sign * c, self._sign * at_horizon, remaining)
        return dict(zip(names, values))

    def _is_over(self, found):
        if found["remaining"] <= self.tolerance:
            return True
        if self.target is None:
            return False
        there = self._sign * found[f"predicted_{self.monitor}"]
        return there < self._sign * self.target

    def _state(self):
        return {}, {
            "epochs": self._epochs,
            "values": self._values,
            "waited": self._waited,
        }

    def _restore(self, arrays, facts):
        self._epochs, self._values = facts["epochs"], facts["values"]
        self._waited = facts["waited"]
