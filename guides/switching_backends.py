"""
Title: Switch backends in the middle of a project
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Train on one backend, save, and go on with another.
Accelerator: None
"""

"""
## What this guide does

It trains a reversible network with MicroAdam for some epochs, saves it, and
goes on in two ways: on the backend where it began, and in a second process on
another one. Both have to come to the same losses.

```shell
KERAS_BACKEND=jax python guides/switching_backends.py --to torch
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time: a process has one backend for good.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_efficient

BACKENDS = ("torch", "jax", "tensorflow")

"""
## What is the same on all backends

- A `.keras` file: architecture, weights, and the state of the optimizer, bit
  for bit. MicroAdam's state is made of bytes and small integers of the same
  shapes everywhere.
- NumPy arrays as data, shuffled by NumPy: `fit(shuffle=True)` would draw
  another order.

## What is not

- Random numbers. Dropout drops other units on another backend; this network
  has none, so that the losses can be compared.
- Last digits. Sums are taken in another order, and training amplifies that
  slowly.
- Whether a step is compiled. `compile` turns `jit_compile="auto"` into `True`
  or `False` for the backend, and the file holds that: `True` from JAX, which
  is `torch.compile` on PyTorch; `False` from PyTorch, with which JAX would
  run without `jax.jit`. So compile again after loading.
"""


def load(epochs):
    """Return the digits in the order of each epoch."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    orders = [
        np.random.default_rng(epoch).permutation(len(x)) for epoch in epochs
    ]
    return [(x[order], y[order]) for order in orders]


def build(width, depth):
    keras.utils.set_random_seed(0)

    def function():
        return keras.Sequential(
            [
                layers.BatchNormalization(momentum=0.9),
                layers.Dense(2 * width, activation="relu"),
                layers.Dense(width),
            ]
        )

    inputs = keras.Input((64,))
    x = layers.Dense(2 * width)(inputs)
    blocks = [
        keras_efficient.layers.AdditiveCoupling(function(), function())
        for _ in range(depth)
    ]
    x = keras_efficient.layers.ReversibleSequence(blocks)(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    model.compile(
        optimizer=keras_efficient.optimizers.MicroAdam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def train(model, epochs):
    losses = []
    for x, y in load(epochs):
        history = model.fit(x, y, batch_size=128, shuffle=False, verbose=0)
        losses += history.history["loss"]
    return losses


"""
## Go on

`compile` gets the optimizer of the loaded model, which has its state: moments,
errors fed back, the number of steps. A new optimizer would start anew. (With
`load_model(path, compile=False)` there is none, and the state is lost.)

Custom classes have to be known before a file is loaded: importing
`keras_efficient` registers those of this library.
"""


def go_on(path, epochs):
    model = keras.models.load_model(path)
    model.compile(
        optimizer=model.optimizer, loss=model.loss, jit_compile="auto"
    )
    return train(model, epochs)


"""
## In another process

This guide starts itself with another `KERAS_BACKEND`, and `--model` tells it
to do the second half only. By hand one would do the same in two commands.
"""


def go_on_with(backend, path, epochs):
    command = [sys.executable, __file__, "--model", str(path), "--epochs"]
    command += [str(epochs.start), str(epochs.stop)]
    result = subprocess.run(
        command,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def another_backend():
    """Return the first installed one, or the current one if it is alone."""
    here = keras.config.backend()
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    return next((name for name in installed if name != here), here)


"""
## What came out
"""


def show(first, stayed, moved, to):
    here = keras.config.backend()
    table = Table("epoch", f"loss on {here}", f"loss on {to}", title="going on")
    for epoch, loss in enumerate(first):
        table.add_row(str(epoch + 1), f"{loss:.5f}")
    table.add_section()
    for epoch, (ours, others) in enumerate(zip(stayed, moved), len(first)):
        table.add_row(str(epoch + 1), f"{ours:.5f}", f"{others:.5f}")
    Console().print(table)
    apart = np.max(np.abs(np.divide(moved, stayed) - 1))
    print(f"largest difference: {100 * apart:.3f} %")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    help = "of the first half, and the last of the second one"
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=(4, 8), help=help
    )
    parser.add_argument("--to", choices=BACKENDS, help="the other backend")
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--width", type=int, default=64, help="of a stream")
    help = "go on with this file, for the epochs between the two, and stop"
    parser.add_argument("--model", help=help)
    options = parser.parse_args()

    epochs = range(*options.epochs)
    if options.model:
        print(json.dumps(go_on(options.model, epochs)))
        return
    to = options.to or another_backend()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "half_way.keras")
        model = build(options.width, options.depth)
        first = train(model, range(epochs.start))
        model.save(path)
        moved = go_on_with(to, path, epochs)
    show(first, train(model, epochs), moved, to)


if __name__ == "__main__":
    main()
