"""
Title: Train the same network in less memory
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: A residual network on handwritten digits, plain and compressed.
Accelerator: None
"""

"""
## What this guide does

It trains one residual network twice on real data: plainly, with Adam, and
then reversibly, with MicroAdam and AutoDrop. It prints what each run reached
and what it took, and draws both in `quickstart.png`.

```shell
KERAS_BACKEND=jax python guides/quickstart.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_efficient

if "MPLBACKEND" not in os.environ:  # a notebook sets it
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

"""
## The data

The digits ship with scikit-learn: 1,797 images of 8 x 8 pixels. The other
data sets are downloaded by Keras.
"""


def load(dataset):
    """Return `(x_train, y_train), (x_test, y_test)`, pixels from 0 to 1."""
    if dataset == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
        x_train, x_test, y_train, y_test = train_test_split(
            x, y, test_size=0.2, random_state=0, stratify=y
        )
        return (x_train, y_train), (x_test, y_test)
    try:
        train, test = getattr(keras.datasets, dataset).load_data()
    except Exception as error:
        sys.exit(
            f"Could not download '{dataset}': {error}\nWithout a network use "
            "`--dataset digits`, which is installed with scikit-learn."
        )

    def scale(x, y):
        x = x.astype("float32") / 255
        return x.reshape(*x.shape[:3], -1), y.reshape(-1)

    return scale(*train), scale(*test)


"""
## The network

Each block couples two streams: `y1 = x1 + f(x2)`, `y2 = x2 + g(y1)`. The
plain twin is the same network, `reversible=False`: the same variables, the
same function, with the activations stored.
"""


def function(width):
    return keras.Sequential(
        [
            layers.BatchNormalization(momentum=0.9),
            layers.Dense(2 * width, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(width),
        ]
    )


def build(input_shape, classes, depth, width, reversible):
    inputs = keras.Input(input_shape)
    x = layers.Dense(2 * width)(layers.Flatten()(inputs))
    blocks = [
        keras_efficient.layers.AdditiveCoupling(
            function(width), function(width)
        )
        for _ in range(depth)
    ]
    x = keras_efficient.layers.ReversibleSequence(blocks, reversible)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


"""
## One run

Only the arguments of `compile` and `fit` differ between the two.
"""


class StepTime(keras.callbacks.Callback):
    """Seconds a training step, the median over epochs but the first."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.epochs.append(time.perf_counter() - self.start)

    def median(self):
        return np.median(self.epochs[1:] or self.epochs) / self.params["steps"]


def train(name, options, data, seed):
    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = data
    reversible = name == "reversible"
    step_time, auto_drop = StepTime(), None
    optimizer, callbacks = keras.optimizers.Adam(options.learning_rate), []
    if reversible:
        optimizer = keras_efficient.optimizers.MicroAdam(options.learning_rate)
        auto_drop = keras_efficient.callbacks.AutoDrop(
            mode="epoch",
            factor=0.3,
            threshold=options.threshold,
            min_lr=options.learning_rate / 20,
        )
        callbacks = [auto_drop]
    model = build(
        x.shape[1:], int(y.max()) + 1, options.depth, options.width, reversible
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(f"\n{name}, seed {seed}: {model.count_params():,} parameters")
    history = model.fit(
        x,
        y,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=(x_test, y_test),
        callbacks=[*callbacks, step_time],
    )
    return {
        "history": history.history,
        "accuracy": 100 * history.history["val_accuracy"][-1],
        "saved": keras_efficient.utils.saved_activation_bytes(
            model, x[: options.batch_size]
        ),
        "state": keras_efficient.utils.optimizer_state_bytes(optimizer),
        "seconds": step_time.median(),
        "drops": auto_drop.drops if auto_drop else [],
    }


"""
## What came out
"""


def show(results, seeds):
    table = Table(title=f"{keras.config.backend()}, {seeds} seed(s)")
    for column in ("", "plain, Adam", "reversible, MicroAdam, AutoDrop"):
        table.add_column(column)

    def mean(run, key):
        return np.mean([result[key] for result in results[run]])

    for label, key, form in (
        ("test accuracy, %", "accuracy", "{:.2f}"),
        ("bytes kept for the backward pass", "saved", "{:,.0f}"),
        ("bytes of optimizer state", "state", "{:,.0f}"),
        ("seconds a step", "seconds", "{:.4f}"),
    ):
        values = [form.format(mean(run, key)) for run in results]
        table.add_row(label, *values)
    drops = [
        "; ".join(str([epoch + 1 for epoch in r["drops"]]) for r in runs)
        for runs in results.values()
    ]
    table.add_row("learning rate dropped after epochs", *drops)
    Console().print(table)


def draw(results, path):
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    for ax, key, label in zip(
        axes,
        ("loss", "val_accuracy", "angular_velocity"),
        ("training loss", "test accuracy", "angular velocity, degrees"),
    ):
        for i, (name, (result, *_)) in enumerate(results.items()):
            values = result["history"].get(key, [])
            if values:
                ax.plot(range(1, len(values) + 1), values, f"C{i}", label=name)
            for epoch in result["drops"]:
                ax.axvline(epoch + 1, color="gray", linestyle=":")
        ax.set(xlabel="epoch (dotted: learning rate drops)", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].legend()
    labels = ("kept for backward", "optimizer state")
    for i, (name, (result, *_)) in enumerate(results.items()):
        heights = [result[key] / 2**20 for key in ("saved", "state")]
        bars = axes[3].bar(np.arange(2) + 0.4 * i, heights, 0.4, label=name)
        axes[3].bar_label(bars, fmt="%.2f")
    axes[3].set_xticks(np.arange(2) + 0.2, labels)
    axes[3].set(ylabel="MiB")
    figure.savefig(path, dpi=120)
    print(f"Wrote {path}")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    names = ("digits", "mnist", "cifar10", "cifar100")
    parser.add_argument("--dataset", choices=names, default="digits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--width", type=int, default=64, help="of a stream")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    help = "of AutoDrop, in degrees"
    parser.add_argument("--threshold", type=float, default=1.0, help=help)
    parser.add_argument("--output", default="quickstart.png")
    options = parser.parse_args()

    data = load(options.dataset)
    results = {"plain": [], "reversible": []}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(train(name, options, data, seed))
    show(results, options.seeds)
    draw(results, options.output)


if __name__ == "__main__":
    main()
