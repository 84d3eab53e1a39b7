"""
Title: Write a reversible block of your own
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Two methods, a check, a comparison of gradients, a training run.
Accelerator: None
"""

"""
## What this guide does

It writes a reversible block that is not in the library, finds out whether it
is right, sees a wrong one being caught, and trains a network of such blocks
on handwritten digits.

```shell
KERAS_BACKEND=jax python guides/your_own_reversible_block.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_efficient

"""
## The block

A residual network is a step of Euler's method for a differential equation of
first order, `x' = f(x)`. One of second order, `x'' = f(x)`, is solved by the
leapfrog method, which needs the last two states for the next one:

```
next = 2 x - before + h^2 f(x)
```

It runs backward as well as forward, because `before` is in there without a
function around it ([Chang et al., 2018](https://arxiv.org/abs/1709.03698)).
The two streams are the two states:

```
y1 = x2                               x2 = y1
y2 = 2 x2 - x1 + h^2 f(x2)            x1 = 2 y1 - y2 + h^2 f(y1)
```

`couple` is the left side, `uncouple` the right one. Both call the layer
inside through `evaluate`, which hands on `training`, masks and the random
numbers to be drawn again; anything else in them has to be `keras.ops`. The
derivative follows from the two. `get_config` and `from_config` are those of
any layer with a layer inside, so that the network can be saved.
"""


@keras.saving.register_keras_serializable(package="guides")
class Leapfrog(keras_efficient.layers.ReversibleLayer):
    """A step of the leapfrog method for `x'' = f(x)`."""

    def __init__(self, f, step=0.3, **kwargs):
        super().__init__(**kwargs)
        self.f = f
        self.step = step

    def couple(self, streams, evaluate):
        before, x = streams
        force = self.step**2 * evaluate(self.f, x)
        return x, 2 * x - before + force

    def uncouple(self, streams, evaluate):
        x, after = streams
        force = self.step**2 * evaluate(self.f, x)
        return 2 * x - after + force, x

    def get_config(self):
        f = keras.saving.serialize_keras_object(self.f)
        return {**super().get_config(), "f": f, "step": self.step}

    @classmethod
    def from_config(cls, config):
        f = keras.saving.deserialize_keras_object(config["f"])
        return cls(**{**config, "f": f})


"""
## A wrong one

It has forgotten the factor in `uncouple`. Nothing would tell: forward it
computes the same, it trains, only with wrong gradients.
"""


@keras.saving.register_keras_serializable(package="guides")
class Wrong(Leapfrog):
    """A block whose `uncouple` does not undo its `couple`."""

    def uncouple(self, streams, evaluate):
        x, after = streams
        return 2 * x - after + evaluate(self.f, x), x


"""
## The network

Blocks go into a `ReversibleSequence`, which keeps one output for all of them.
The single input is split in two along the channels; here both halves are the
same, a system that starts at rest.
"""


def function(width):
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(2 * width, activation="tanh"),
            layers.Dense(width),
        ]
    )


def build(kind, options, reversible=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    x = layers.Dense(options.width)(inputs)
    blocks = [kind(function(options.width)) for _ in range(options.depth)]
    run = keras_efficient.layers.ReversibleSequence(
        blocks, reversible, name=kind.__name__.lower()
    )
    _, now = run([x, x])
    model = keras.Model(inputs, layers.Dense(10)(now))
    model.compile(
        optimizer=keras.optimizers.SGD(1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, run


"""
## Is it right?

`check_reversibility` undoes the blocks one after the other and compares the
gradient of each with that of stored activations. Errors around 1e-6 to 1e-4
are rounding; those of the wrong block are not. They grow from the last block
to the first, the way the backward pass goes.
"""


def check(kind, options, x):
    _, run = build(kind, options)
    x = keras.random.normal((len(x), options.width), seed=0)
    return keras_efficient.utils.check_reversibility(run, [x, x])


"""
## The same gradient as its plain twin

The check above looks at the run alone. In a model the proof is one step of
plain gradient descent at a learning rate of 1: weights before minus weights
after are the gradient, on any backend. `reversible=False` builds the twin,
which stores its activations and never calls `uncouple`.
"""


def gradient(kind, options, x, y, reversible):
    model, _ = build(kind, options, reversible)
    before = model.get_weights()
    model.train_on_batch(x, y)
    after = model.get_weights()
    return np.concatenate([(b - a).ravel() for b, a in zip(before, after)])


def compare_gradients(options, x, y):
    table = Table("block", "error of the gradient", title="against the twin")
    for kind in (Leapfrog, Wrong):
        ours, plain = (gradient(kind, options, x, y, r) for r in (True, False))
        error = np.linalg.norm(ours - plain) / np.linalg.norm(plain)
        table.add_row(kind.__name__, f"{error:.1e}")
    Console().print(table)


"""
## Train it

What it is for: the bytes kept for the backward pass. MicroAdam and the rest
of Keras work with it as with any layer.
"""


def train(data, options):
    x, x_test, y, y_test = data
    table = Table("", "bytes kept", "test accuracy, %", title="trained")
    for name, reversible in (("plain", False), ("reversible", True)):
        model, _ = build(Leapfrog, options, reversible)
        model.compile(
            optimizer=keras_efficient.optimizers.MicroAdam(
                options.learning_rate
            ),
            loss=model.loss,
            metrics=["accuracy"],
        )
        model.fit(x, y, batch_size=128, epochs=options.epochs, verbose=0)
        kept = keras_efficient.utils.saved_activation_bytes(model, x[:128])
        _, accuracy = model.evaluate(x_test, y_test, verbose=0)
        table.add_row(name, f"{kept:,}", f"{100 * accuracy:.2f}")
    Console().print(table)


"""
## Run it

Try `--depth 64`: rounding errors grow with the depth, and a step that is too
large for `f` makes them grow faster. `check_reversibility` tells when.
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--depth", type=int, default=8, help="blocks")
    parser.add_argument("--width", type=int, default=64, help="of a stream")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    data = train_test_split(
        (x / 16).astype("float32"), y, test_size=0.2, random_state=0, stratify=y
    )
    x, _, y, _ = data
    print(keras.config.backend())
    for kind in (Leapfrog, Wrong):
        check(kind, options, x[:128])
    compare_gradients(options, x[:128], y[:128])
    train(data, options)


if __name__ == "__main__":
    main()
