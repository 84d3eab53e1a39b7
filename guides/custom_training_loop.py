"""
Title: A custom training loop on each backend
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Reversible layers and MicroAdam without `fit`.
Accelerator: None
"""

"""
## What this guide does

It trains a reversible network with MicroAdam in a loop of its own: one for
JAX, one for TensorFlow and one for PyTorch, of which the one for the current
backend runs. Beside it runs `fit` on the same batches, which has to come to
the same losses.

```shell
KERAS_BACKEND=jax python guides/custom_training_loop.py
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

import keras_efficient

"""
## The data

The digits ship with scikit-learn: 1,797 images of 8 x 8 pixels. Each epoch is
a list of batches, all of the same size.
"""


def load(batch_size, epochs):
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    rng = np.random.default_rng(0)
    steps = len(x) // batch_size
    orders = [
        rng.permutation(len(x))[: steps * batch_size] for _ in range(epochs)
    ]
    return [
        [(x[rows], y[rows]) for rows in np.split(order, steps)]
        for order in orders
    ]


"""
## The model

There is nothing about a loop in it. Batch normalization has statistics that
a step updates, dropout a generator that it advances: the loops have to take
care of both, in a reversible run as anywhere else.
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


def build(width, depth):
    inputs = keras.Input((64,))
    x = layers.Dense(2 * width)(inputs)
    blocks = [
        keras_efficient.layers.AdditiveCoupling(
            function(width), function(width)
        )
        for _ in range(depth)
    ]
    x = keras_efficient.layers.ReversibleSequence(blocks)(x)
    return keras.Model(inputs, layers.Dense(10)(x))


"""
## JAX

A step is a pure function under `jax.jit`: everything that it changes goes in
as an argument and comes out as a result. `stateless_call` does that for the
model, `stateless_apply` for the optimizer. The buffers of the state that goes
in are donated, so that the new one takes their place. At the end the values
go back into the variables.
"""


def train_on_jax(model, optimizer, loss_fn, epochs):
    import jax

    optimizer.build(model.trainable_variables)

    def loss_of(params, others, x, y):
        logits, others = model.stateless_call(params, others, x, training=True)
        return loss_fn(y, logits), others

    def step(state, x, y):
        params, others, slots = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), grads = gradient(params, others, x, y)
        params, slots = optimizer.stateless_apply(slots, grads, params)
        return loss, (params, others, slots)

    step = jax.jit(step, donate_argnums=0)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables,
    )
    state = tuple([v.value for v in group] for group in variables)
    means = []
    for batches in epochs:
        losses = []
        for x, y in batches:
            loss, state = step(state, x, y)
            losses.append(loss)
        means.append(np.mean(losses))
    for group, values in zip(variables, state):
        for variable, value in zip(group, values):
            variable.assign(value)
    return means


"""
## TensorFlow

The tape records the call, `apply` changes the variables in place. Variables
have to be there before `tf.function` traces the step, so the optimizer is
built first. `jit_compile=True` works as well.
"""


def train_on_tensorflow(model, optimizer, loss_fn, epochs):
    import tensorflow as tf

    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)
        return loss

    return [
        np.mean([step(tf.constant(x), tf.constant(y)) for x, y in batches])
        for batches in epochs
    ]


"""
## PyTorch

`backward` leaves a gradient at each variable, and the optimizer takes it from
there. The update itself is not to be differentiated.
"""


def train_on_torch(model, optimizer, loss_fn, epochs):
    import torch

    optimizer.build(model.trainable_variables)

    def step(x, y):
        model.zero_grad()
        loss = loss_fn(y, model(x, training=True))
        loss.backward()
        grads = [v.value.grad for v in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(grads, model.trainable_variables)
        return loss.item()

    to_tensor = keras.ops.convert_to_tensor
    return [
        np.mean([step(to_tensor(x), to_tensor(y)) for x, y in batches])
        for batches in epochs
    ]


"""
## The same by `fit`

`fit` gives the mean over an epoch, too. On JAX and TensorFlow the two columns
agree to the digits shown. On PyTorch they are close: dropout draws from
PyTorch's global generator there, which `fit` has used once before the first
batch.
"""


def train_by_fit(model, optimizer, loss_fn, epochs):
    model.compile(optimizer=optimizer, loss=loss_fn)
    means = []
    for batches in epochs:
        x, y = map(np.concatenate, zip(*batches))
        history = model.fit(
            x, y, batch_size=len(batches[0][0]), shuffle=False, verbose=0
        )
        means += history.history["loss"]
    return means


"""
## Run it
"""

LOOPS = {
    "jax": train_on_jax,
    "tensorflow": train_on_tensorflow,
    "torch": train_on_torch,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--width", type=int, default=64, help="of a stream")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()

    epochs = load(options.batch_size, options.epochs)
    losses = {}
    for name, train in (
        ("the loop", LOOPS[keras.config.backend()]),
        ("fit", train_by_fit),
    ):
        keras.utils.set_random_seed(0)
        model = build(options.width, options.depth)
        losses[name] = train(
            model,
            keras_efficient.optimizers.MicroAdam(options.learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            epochs,
        )
    table = Table("epoch", *losses, title=f"{keras.config.backend()}, loss")
    for epoch, pair in enumerate(zip(*losses.values())):
        table.add_row(str(epoch + 1), *[f"{loss:.5f}" for loss in pair])
    Console().print(table)


if __name__ == "__main__":
    main()
