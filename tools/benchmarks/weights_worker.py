"""One task, one optimizer: 16-bit weights, rounded in each way, and float32."""

import time

import keras
import numpy as np
from keras import ops

import keras_efficient
from benchmarks import real_tasks
from benchmarks.comparison import spread
from benchmarks.convergence import WEIGHT_RATES
from benchmarks.real_tasks import BATCH
from benchmarks.real_tasks import make_optimizer

ROUNDINGS = ("compensated", "stochastic", "nearest")


def run(task, name, options):
    # All compute in 16 bits; only the weights of the first one are float32.
    trials = {"float32": Trial(task, name, None, options)}
    for rounding in ROUNDINGS:
        trials[rounding] = Trial(task, name, rounding, options)
    result = {}
    for rounding, trial in trials.items():
        result[rounding] = {"bytes": trial.bytes_a_parameter(), "rates": {}}
    for rate in WEIGHT_RATES:
        runs = {rounding: [] for rounding in trials}
        for seed in range(options.seeds):
            for rounding, trial in trials.items():
                runs[rounding].append(trial.train(rate, seed))
        for rounding, column in runs.items():
            result[rounding]["rates"][rate] = {
                "loss": spread(column, "loss"),
                "step": float(np.median([run["step"] for run in column])),
                **_movement(column, runs["float32"]),
            }
    return result


def _movement(runs, references):
    """Compare how far weights went with where they went in float32."""
    distances, correlations = [], []
    for run, reference in zip(runs, references):
        x, y = run["moved"], reference["moved"]
        distances.append(np.abs(x).mean() / np.abs(y).mean())
        correlations.append(np.corrcoef(x, y)[0, 1] if x.any() else 0.0)
    return {
        "distance": float(np.mean(distances)),
        "correlation": float(np.mean(correlations)),
    }


class Trial:
    """A compiled model that is trained again and again from the start."""

    def __init__(self, task, name, rounding, options):
        self.data = getattr(real_tasks, task)()[0]
        self.build = getattr(real_tasks, f"build_{task}")
        self.steps = int(400 * options.scale)
        policy = options.weights if rounding else f"mixed_{options.weights}"
        keras.config.set_dtype_policy(policy)
        self.model = self.build()
        keras.config.set_dtype_policy("float32")
        self.optimizer = optimizer = _make(name, rounding)
        if options.weights == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            auto_scale_loss=False,
        )
        optimizer.build(self.model.trainable_variables)
        self.fresh = [_to_numpy(v) for v in optimizer.variables]

    def train(self, rate, seed):
        keras.utils.set_random_seed(seed)
        # Numbers that 16 bits hold.
        start = [
            _to_numpy(ops.cast(w, "bfloat16"))
            for w in self.build().get_weights()
        ]
        self.model.set_weights(start)
        optimizer = self.model.optimizer
        for variable, value in zip(optimizer.variables, self.fresh):
            variable.assign(value)
        x, y = self.data
        rng = np.random.default_rng(seed)
        seconds = []
        for step in range(self.steps):
            cosine = 0.5 * (1 + np.cos(np.pi * step / self.steps))
            optimizer.learning_rate = rate * cosine
            batch = rng.integers(len(x), size=BATCH)
            began = time.perf_counter()
            self.model.train_on_batch(x[batch], y[batch])
            seconds.append(time.perf_counter() - began)
        moved = zip(self._values(), start)
        return {
            "moved": np.concatenate([(v - w).ravel() for v, w in moved]),
            "loss": self.model.evaluate(
                x[:2048], y[:2048], batch_size=256, verbose=0
            ),
            "step": float(np.median(seconds)),
        }

    def _values(self):
        """Weights with what 16 bits do not show."""
        weights = getattr(self.optimizer, "_weights", None)
        for i, variable in enumerate(self.model.trainable_variables):
            is_float32 = variable.dtype == "float32" or weights is None
            yield _to_numpy(
                variable if is_float32 else weights.read(i, variable)
            )

    def bytes_a_parameter(self):
        size = 4 if self.model.trainable_variables[0].dtype == "float32" else 2
        state = keras_efficient.utils.optimizer_state_bytes(self.optimizer)
        return size + state / self.model.count_params()


def _make(name, rounding):
    if not hasattr(keras_efficient.optimizers, name.partition(":")[0]):
        optimizer = make_optimizer(name)
        if rounding is None:
            return optimizer
        return keras_efficient.optimizers.SixteenBit(optimizer, rounding)
    return make_optimizer(name, weight_rounding=rounding or "nearest")


def _to_numpy(x):
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))
