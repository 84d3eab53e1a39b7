"""One task, one optimizer: tune what is to be tuned, then run the seeds."""

import functools

import keras
import numpy as np

import keras_efficient
from benchmarks import real_tasks
from benchmarks.comparison import spread
from benchmarks.schedules import AUTO
from benchmarks.schedules import PLATEAU
from benchmarks.schedules import TUNED

# model, batch, steps an epoch, epochs
TASKS = {
    "digits": (functools.partial(real_tasks.build_digits, 8), 32, 42, 40),
    "measurements": (real_tasks.build_measurements, 16, 26, 50),
    "text": (functools.partial(real_tasks.build_text, 32, 1), 16, 50, 25),
}
RATES = {
    "SGD": (0.01, 0.03, 0.1, 0.3),
    "Adam": (0.001, 0.003, 0.01, 0.03),
}
MIDDLE = (0.1, 1 / 2, 3 / 4)
STEPS = [
    (factor, *drops)
    for factor in (0.1, 0.3)
    for drops in ((1 / 3, 2 / 3), MIDDLE[1:], (7 / 10, 9 / 10))
]
PLATEAUS = [
    (factor, patience) for factor in (0.1, 0.3) for patience in (2, 5, 10)
]


def run(task, name, options):
    trial = Trial(task, name, options)
    tuning = [-1 - seed for seed in range(options.tuning_seeds)]

    def choose(make, candidates):
        """Return the candidate with the lowest loss, and all losses."""
        losses = [
            np.mean([trial.train(*make(candidate), seed) for seed in tuning])
            for candidate in candidates
        ]
        # A run that diverged has no loss that JSON could hold.
        losses = np.nan_to_num(losses, nan=1e9, posinf=1e9).tolist()
        return candidates[int(np.argmin(losses))], losses

    rates = RATES[name]
    constant, constants = choose(lambda rate: (rate, []), rates)
    rate, losses = choose(lambda rate: (rate, step(MIDDLE)), rates)
    drops, step_grid = choose(lambda drops: (rate, step(drops)), STEPS)
    pair, plateau_grid = choose(lambda pair: (rate, plateau(*pair)), PLATEAUS)
    auto_drop = keras_efficient.callbacks.AutoDrop
    bandit = keras_efficient.callbacks.BanditLearningRate
    schedules = {
        "constant, tuned": (constant, lambda: []),
        TUNED: (rate, lambda: step(drops)),
        "cosine": (rate, cosine),
        PLATEAU: (rate, lambda: [keras.callbacks.ReduceLROnPlateau()]),
        "plateau, tuned": (rate, lambda: plateau(*pair)),
        "AutoDrop epoch": (rate, lambda: [auto_drop("epoch", threshold=1.0)]),
        "AutoDrop window": (
            rate,
            lambda: [auto_drop("window", window_steps=20)],
        ),
        AUTO: (rate, lambda: [auto_drop("auto")]),
        "bandit": (
            rate,
            lambda: [bandit(np.geomspace(1e-4, 0.3, 8))],
        ),
    }
    return {
        "rate": rate,
        "step": drops,
        "plateau": pair,
        "grids": {
            "constant": constants,
            "rate": losses,
            "step": step_grid,
            "plateau": plateau_grid,
        },
        "runs": {
            name: spread(
                [
                    {"loss": trial.train(rate, make(), seed)}
                    for seed in range(options.seeds)
                ],
                "loss",
            )
            for name, (rate, make) in schedules.items()
        },
    }


def step(drops):
    factor, *when = drops
    return [Schedule(lambda done: factor ** sum(done >= part for part in when))]


def cosine():
    return [Schedule(lambda done: 0.5 * (1 + np.cos(np.pi * done)))]


def plateau(factor, patience):
    return [keras.callbacks.ReduceLROnPlateau(factor=factor, patience=patience)]


def shift(images, rng):
    """Move each image by up to a pixel in each direction.

    Without it the training loss falls to zero, and the validation loss is
    noise: its deviation over seeds is larger than what schedules change.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = rng.integers(3, size=(2, len(images)))
    return np.stack(
        [
            image[row : row + 8, column : column + 8]
            for image, row, column in zip(padded, rows, columns)
        ]
    )


class Schedule(keras.callbacks.Callback):
    """Multiply the initial rate by a function of the part of the run done."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_train_begin(self, logs=None):
        rate = self.model.optimizer.learning_rate
        self.rate = float(keras.ops.convert_to_numpy(rate))

    def on_epoch_begin(self, epoch, logs=None):
        # The middle of the epoch.
        done = (epoch + 0.5) / self.params["epochs"]
        self.model.optimizer.learning_rate = self.rate * self.function(done)


class Trial:
    """A compiled model that is trained again and again from the start."""

    def __init__(self, task, name, options):
        self.data = getattr(real_tasks, task)()
        self.augment = shift if task == "digits" else lambda x, rng: x
        self.build, self.batch, self.steps, epochs = TASKS[task]
        self.epochs = max(2, round(epochs * options.scale))
        self.model = self.build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(
            optimizer=keras.optimizers.SGD(momentum=0.9)
            if name == "SGD"
            else keras.optimizers.Adam(),
            loss="mse" if task == "measurements" else loss,
            jit_compile=options.backend.endswith("-xla") or "auto",
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.start = [v.numpy() for v in self.model.optimizer.variables]

    def train(self, rate, callbacks, seed):
        """Return the final validation loss."""
        seed = seed % 2**31
        keras.utils.set_random_seed(seed)
        # The seeds of Dropout too, which are no weights.
        for layer, fresh in zip(self.model.layers, self.build().layers):
            for variable, value in zip(layer.variables, fresh.variables):
                variable.assign(value)
        optimizer = self.model.optimizer
        for variable, value in zip(optimizer.variables, self.start):
            variable.assign(value)
        optimizer.learning_rate = rate
        watches = any(
            isinstance(callback, keras.callbacks.ReduceLROnPlateau)
            for callback in callbacks
        )
        held_out = self.data[1]
        self.model.fit(
            self.batches(seed),
            steps_per_epoch=self.steps,
            epochs=self.epochs,
            validation_data=held_out if watches else None,
            validation_batch_size=256,
            callbacks=callbacks,
            verbose=0,
        )
        return self.model.evaluate(*held_out, batch_size=256, verbose=0)

    def batches(self, seed):
        """Yield batches: all examples once, in random order, then again."""
        (x, y), _ = self.data
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(x))
            for i in range(0, len(x) - self.batch + 1, self.batch):
                batch = order[i : i + self.batch]
                yield self.augment(x[batch], rng), y[batch]
