"""
Title: Train a deeper network in the same memory
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Measure what a residual network takes, then afford more of it.
Accelerator: None
"""

"""
## What this guide does

It measures where the memory of a plain residual network goes, builds the
reversible one with several times its depth, and measures again: does that
fit into the bytes of the shallow one? Then it trains both on handwritten
digits.

```shell
KERAS_BACKEND=jax python guides/deeper_in_the_same_memory.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_efficient

"""
## The data

The digits ship with scikit-learn: 1,797 images of 8 x 8 pixels.
"""


def load():
    """Return `x_train, x_test, y_train, y_test`, pixels from 0 to 1."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    return train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)


"""
## The network

Each block couples two halves of the channels: `y1 = x1 + f(x2)`,
`y2 = x2 + g(y1)`. With `reversible=False` it is a residual network like any
other, which stores what each convolution has to find again in the backward
pass. So each block costs memory, in proportion to the batch.
"""


def function(width, name):
    return keras.Sequential(
        [
            layers.BatchNormalization(momentum=0.9, name="norm"),
            layers.Activation("relu", name="relu"),
            layers.Conv2D(width, 3, padding="same", name="conv"),
        ],
        name=name,
    )


def build(depth, options, reversible):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2 * options.width, 3, padding="same")(inputs)
    blocks = [
        keras_efficient.layers.AdditiveCoupling(
            function(options.width, "f"),
            function(options.width, "g"),
            name=f"block_{i + 1}",
        )
        for i in range(depth)
    ]
    x = keras_efficient.layers.ReversibleSequence(
        blocks, reversible, name="run"
    )(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    model = keras.Model(inputs, layers.Dense(10)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


"""
## Where the memory goes

`memory_report` measures parameters, gradients, optimizer state and
activations of one training step. Its second table compares what would help:
for this network the line "reversible" is the one with the smallest peak, and
the largest batch within the budget. Nothing is trained for that, and the
model stays as it is.

What is free then can go into the batch, or into depth. A reversible block
still costs its parameters, their gradients and the state of the optimizer;
but these do not grow with the batch.
"""


def measure(depth, options, x, reversible, verbose):
    model = build(depth, options, reversible)
    report = keras_efficient.utils.memory_report(
        model, x, budget=options.budget, verbose=verbose
    )
    return model, report.usage["as it is"]


"""
## One run
"""


def train(model, data, options):
    x, x_test, y, y_test = data
    start = time.perf_counter()
    model.fit(
        x,
        y,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=(x_test, y_test),
        verbose=2,
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    return 100 * accuracy, seconds


"""
## What came out

The peak is that of the report: parameters, gradients, optimizer state,
activations and working memory of a step.
"""


def show(results):
    table = Table(title=keras.config.backend())
    table.add_column("")
    for name in results:
        table.add_column(name)
    for label, key, form in (
        ("blocks", "depth", "{}"),
        ("parameters", "parameters", "{:,}"),
        ("bytes kept for the backward pass", "kept", "{:,}"),
        ("bytes at the peak of a step", "peak", "{:,}"),
        ("test accuracy, %", "accuracy", "{:.2f}"),
        ("seconds, with compilation", "seconds", "{:.0f}"),
    ):
        table.add_row(label, *[form.format(r[key]) for r in results.values()])
    Console().print(table)


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--depth", type=int, default=4, help="plain blocks")
    parser.add_argument("--times", type=int, default=5, help="the depth")
    parser.add_argument("--width", type=int, default=12, help="of a stream")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--budget", type=float, default=0.1, help="GiB")
    options = parser.parse_args()

    data = load()
    x = data[0][: options.batch_size]
    results = {}
    for name, depth, reversible in (
        ("plain", options.depth, False),
        ("reversible", options.times * options.depth, True),
    ):
        keras.utils.set_random_seed(0)
        # The table of the deep network would be long.
        model, usage = measure(depth, options, x, reversible, not reversible)
        print(f"\n{name}, {depth} blocks")
        accuracy, seconds = train(model, data, options)
        results[name] = {
            "depth": depth,
            "parameters": model.count_params(),
            "kept": usage.activations,
            "peak": usage.peak,
            "accuracy": accuracy,
            "seconds": seconds,
        }
    show(results)
    plain, deep = (result["peak"] for result in results.values())
    print(
        f"{options.times} times the depth in {deep / plain:.2f} times the peak "
        f"of the plain network: it {'fits' if deep <= plain else 'is too deep'}"
    )


if __name__ == "__main__":
    main()
