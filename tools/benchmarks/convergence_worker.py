"""One task, one optimizer: choose the learning rate, then run the seeds."""

import pydoc_data.topics
import time

import keras
import numpy as np
from keras import layers
from keras import ops

import keras_efficient
from benchmarks.convergence import RATES

OPTIONS = {
    # Its matrices see 0.05 of the rate otherwise.
    "SinkGD": {"alpha": 1.0},
    # With Keras' 1e-30, squares of entries without a gradient are 0 / 0 in
    # float32.
    "Adafactor": {"epsilon_1": 1e-12},
}
CONTEXT = 32  # characters
BATCH = 32


def run(task, name, options):
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


def spread(runs, key):
    values = [run[key] for run in runs]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": float(np.mean(values)),
        "deviation": deviation,
        "values": values,
    }


class Trial:
    """A compiled model that is trained again and again from the start."""

    def __init__(self, task, name, options):
        self.data = digits() if task == "digits" else text()
        self.build = build_digits if task == "digits" else build_text
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


def make_optimizer(name):
    ours = keras_efficient.optimizers
    module = ours if hasattr(ours, name) else keras.optimizers
    return getattr(module, name)(**OPTIONS.get(name, {}))


def digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=y
    )
    return (x, y), (x_test, y_test)


def build_digits():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def text():
    topics = pydoc_data.topics.topics
    characters = "".join(topics[key] for key in sorted(topics))
    codes = np.frombuffer(
        characters.encode("ascii", errors="replace"), dtype="uint8"
    )
    # The alphabet, in order of appearance in the code table.
    codes = np.unique(codes, return_inverse=True)[1].astype("int32")
    windows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)
    # The last tenth is held out; every 32nd window of it is enough.
    border = len(codes) * 9 // 10
    train, test = windows[: border - CONTEXT], windows[border::32]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:])


def build_text(width=64, depth=2, heads=4):
    inputs = keras.Input((CONTEXT,), dtype="int32")
    x = layers.Embedding(128, width)(inputs)
    places = ops.ones_like(inputs) * ops.arange(CONTEXT)
    x = x + layers.Embedding(CONTEXT, width)(places)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(heads, width // heads)(
            y, y, use_causal_mask=True
        )
        x = x + y
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    return keras.Model(
        inputs, layers.Dense(128)(layers.LayerNormalization()(x))
    )
