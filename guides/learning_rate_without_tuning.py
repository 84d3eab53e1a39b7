"""
Title: Train without tuning the learning rate's schedule
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: AutoDrop and a bandit against ReduceLROnPlateau, all at defaults.
Accelerator: None
"""

"""
## What this guide does

It trains one network on real data with several callbacks that set the
learning rate, none of them tuned, and prints the validation loss that each
one ends with. It draws the first seed of each in
`learning_rate_without_tuning.png`.

```shell
KERAS_BACKEND=jax python guides/learning_rate_without_tuning.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.

`python tools/benchmark.py schedules` makes the same comparison on three tasks
and with competitors that were tuned.
"""

import argparse
import os
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

Thirty measurements of each of 569 tumours ship with scikit-learn. From twenty
of them, means and standard errors, the network predicts the other ten, the
largest values.
"""


def load():
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x = load_breast_cancer().data
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    x, x_test = train_test_split(x, test_size=0.25, random_state=0)
    return (x[:, :20], x[:, 20:]), (x_test[:, :20], x_test[:, 20:])


def build():
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(10),
        ]
    )


"""
## The callbacks

`AutoDrop` watches the angle between successive steps of the parameters. It
rises while training gains ground, and levels off when it gains no more: then
the learning rate drops. `mode="auto"` has nothing to choose. The two published
rules have a threshold in degrees, which fits large networks at its default;
this one is small, and its angles are noisy.

`BanditLearningRate` has no initial learning rate either. It tries candidates
for some steps each, keeps to those that lowered the loss, and takes back what
made it grow.
"""


def make_callbacks():
    ours = keras_efficient.callbacks
    return {
        "constant": [],
        "ReduceLROnPlateau": [keras.callbacks.ReduceLROnPlateau()],
        "AutoDrop, auto": [ours.AutoDrop()],
        "AutoDrop, epoch": [ours.AutoDrop("epoch", threshold=1.0)],
        "AutoDrop, window": [ours.AutoDrop("window", window_steps=20)],
        "bandit": [ours.BanditLearningRate(np.geomspace(1e-4, 0.3, 8))],
    }


"""
## One run
"""


def train(name, data, seed, options):
    keras.utils.set_random_seed(seed)
    (x, y), held_out = data
    model = build()
    model.compile(
        optimizer=keras.optimizers.SGD(options.learning_rate, momentum=0.9),
        loss="mse",
    )
    start = time.perf_counter()
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=options.epochs,
        validation_data=held_out,
        callbacks=make_callbacks()[name],
        verbose=0,
    ).history
    print(f"{name}, seed {seed}: {history['val_loss'][-1]:.4f}", flush=True)
    return {
        "history": history,
        "loss": history["val_loss"][-1],
        "seconds": time.perf_counter() - start,
    }


"""
## What came out
"""


def show(results):
    table = Table(title=keras.config.backend())
    for column in ("", "final validation loss", "rate at the end", "seconds"):
        table.add_column(column)
    for name, runs in results.items():
        losses = [run["loss"] for run in runs]
        deviation = np.std(losses, ddof=1) if len(losses) > 1 else 0.0
        rates = [run["history"].get("learning_rate", [None]) for run in runs]
        table.add_row(
            name,
            f"{np.mean(losses):.4f} ± {deviation:.4f}",
            ", ".join(f"{rate[-1]:.2g}" for rate in rates if rate[-1]),
            f"{np.mean([run['seconds'] for run in runs]):.1f}",
        )
    Console().print(table)


def draw(results, path):
    """Draw the first seed of each: one column a callback."""
    figure, axes = plt.subplots(
        3, len(results), figsize=(3.2 * len(results), 8), layout="constrained"
    )
    for column, (name, (run, *_)) in zip(axes.T, results.items()):
        keras_efficient.utils.plot_learning_rate(run["history"], axes=column)
        column[0].set_title(name)
    figure.savefig(path, dpi=100)
    print(f"Wrote {path}")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    name = "learning_rate_without_tuning.png"
    parser.add_argument("--output", default=name)
    options = parser.parse_args()

    data = load()
    results = {
        name: [
            train(name, data, seed, options) for seed in range(options.seeds)
        ]
        for name in make_callbacks()
    }
    show(results)
    draw(results, options.output)


if __name__ == "__main__":
    main()
