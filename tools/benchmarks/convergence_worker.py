"""One task, one optimizer: choose the learning rate, then run the seeds."""

import time

import keras
import numpy as np

import keras_efficient
from benchmarks import real_tasks
from benchmarks import weights_worker
from benchmarks.comparison import spread
from benchmarks.convergence import RATES
from benchmarks.real_tasks import BATCH
from benchmarks.real_tasks import make_optimizer


def run(task, name, options):
    if options.weights != "float32":
        return weights_worker.run(task, name, options)
    trial = Trial(task, name, options)
    tuning = [-1 - seed for seed in range(options.tuning_seeds)]
    grid = {}
    for rate in RATES:
        losses = [trial.train(rate, seed)["validation"] for seed in tuning]
        # A run that diverged has no loss that JSON could hold.
        grid[rate] = float(np.nan_to_num(np.mean(losses), nan=1e9, posinf=1e9))
    best = min(grid, key=grid.get)
    runs = [trial.train(best, seed) for seed in range(options.seeds)]
    model = trial.model
    return {
        "rate": best,
        "grid": grid,
        **{key: spread(runs, key) for key in ("training", "validation")},
        "milliseconds": float(np.median([run["step"] for run in runs]) * 1e3),
        "bytes": keras_efficient.utils.optimizer_state_bytes(model.optimizer)
        / model.count_params(),
    }


class Trial:
    """A compiled model that is trained again and again from the start."""

    def __init__(self, task, name, options):
        self.data = getattr(real_tasks, task)()
        self.build = getattr(real_tasks, f"build_{task}")
        self.steps = int(400 * options.scale)
        self.model = self.build()
        self.model.compile(
            optimizer=make_optimizer(name),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=options.backend.endswith("-xla") or "auto",
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.start = [v.numpy() for v in self.model.optimizer.variables]

    def train(self, rate, seed):
        keras.utils.set_random_seed(seed % 2**31)
        self.model.set_weights(self.build().get_weights())
        optimizer = self.model.optimizer
        for variable, value in zip(optimizer.variables, self.start):
            variable.assign(value)
        (x, y), held_out = self.data
        rng = np.random.default_rng(seed % 2**31)
        for step in range(self.steps):
            # The rate is a variable: no new trace.
            cosine = 0.5 * (1 + np.cos(np.pi * step / self.steps))
            optimizer.learning_rate = rate * cosine
            batch = rng.integers(len(x), size=BATCH)
            if step == self.steps // 2:
                start = time.perf_counter()
            self.model.train_on_batch(x[batch], y[batch])
        seconds = time.perf_counter() - start
        return {
            "training": self.model.evaluate(
                x[:2048], y[:2048], batch_size=256, verbose=0
            ),
            "validation": self.model.evaluate(
                *held_out, batch_size=256, verbose=0
            ),
            "step": seconds / (self.steps - self.steps // 2),
        }
