"""
Title: 50,000 words on two cores
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Logits that are never whole, then activations, moments, weights.
Accelerator: None
"""

"""
## What this guide does

It trains a small language model with a large vocabulary, and takes away what
fills the memory of a step, one thing after the other: the logits, the
activations, the moments of Adam, half of each weight. A process of its own
measures each version: bytes at the peak of a step, and seconds.

```shell
KERAS_BACKEND=torch python guides/large_vocabulary.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time. Peaks are asked of Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_efficient

"""
## Where the memory goes

Take 8 sequences of 256 tokens and 50,000 words. For each token the last layer
makes a number for each word: 2,048 x 50,000 x 4 bytes are 410 MB, and the
gradient of the logits takes as much again. That is more than all the layers
before it keep. `chunk_loss` computes the loss of a chunk of tokens at a time,
with its gradients, and forgets the logits of the chunk:

- in the place of the logits there are those of 256 tokens, 51 MB;
- losses, gradients and metrics are the same but for rounding;
- there are as many products of matrices as before, and fewer passes over
  memory.

It is one line, before or after `compile`, for a model that ends in logits: a
KerasHub language model, or any other whose last layer is a `Dense` or a
transposed `ReversibleEmbedding`.
"""


class Block(layers.Layer):
    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.norm_1 = layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.norm_2 = layers.LayerNormalization()
        self.expansion = layers.Dense(4 * width, activation="gelu")
        self.projection = layers.Dense(width)

    def build(self, shape):
        self.norm_1.build(shape)
        self.attention.build(shape, shape)
        self.norm_2.build(shape)
        self.expansion.build(shape)
        self.projection.build((*shape[:-1], self.expansion.units))

    def call(self, x):
        y = self.norm_1(x)
        x = x + self.attention(y, y, use_causal_mask=True)
        return x + self.projection(self.expansion(self.norm_2(x)))


def build(options):
    tokens = keras.Input((options.length,), dtype="int32")
    embedding = layers.ReversibleEmbedding(options.words, options.width)
    x = embedding(tokens)
    for _ in range(options.depth):
        x = Block(options.width, heads=4)(x)
    x = layers.LayerNormalization()(x)
    return keras.Model(tokens, embedding(x, reverse=True))


"""
## Five versions

Each one keeps what the one before has:

1. `plain`: Keras' model, loss and Adam.
2. `chunk_loss`.
3. `recompute`: of each block only the input is kept; what is in it is computed
   again in the backward pass.
4. `Adam8bit`: moments of one byte. Most parameters of such a model are in its
   embedding, so that they are most of what is left.
5. `16-bit`: weights in bfloat16, with 8 bits more kept by the optimizer, so
   that small steps are not rounded away.
"""

VERSIONS = ("plain", "chunk_loss", "recompute", "Adam8bit", "16-bit")


def compiled(version, options):
    level = VERSIONS.index(version)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("bfloat16" if level >= 4 else "float32")
    model = build(options)
    keras.config.set_dtype_policy("float32")
    if level >= 1:
        keras_efficient.chunk_loss(model)
    if level >= 2:
        keras_efficient.recompute(model)
    optimizer = keras.optimizers.Adam(options.learning_rate)
    if level >= 3:
        optimizer = keras_efficient.optimizers.Adam8bit(options.learning_rate)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=keras.config.backend() != "torch",
    )
    return model


"""
## Data

Words as frequent as words are (the n-th in 1 / n of all places), each often
followed by the same other one: there is something to learn, and nothing to
download.
"""


def batches(options):
    rng = np.random.default_rng(0)
    follows = rng.permutation(options.words)
    frequency = 1 / np.arange(1, options.words + 1)
    frequency /= frequency.sum()
    shape = options.batch_size, options.length + 1
    for _ in range(options.steps + 1):
        tokens = rng.choice(options.words, shape, p=frequency)
        repeated = rng.random(shape) < 0.5
        for i in range(1, shape[1]):
            previous = follows[tokens[:, i - 1]]
            tokens[:, i] = np.where(repeated[:, i], previous, tokens[:, i])
        yield tokens[:, :-1], tokens[:, 1:]


"""
## One version, in a process of its own

The first step traces and compiles; the second one is measured. Freed memory is
to go back to the system at once, or its peak says little:
[measuring_memory](measuring_memory.py) tells why.
"""


def measure(version, options):
    model = compiled(version, options)
    first, *others = batches(options)
    model.train_on_batch(*first)
    peak = keras_efficient.utils.peak_bytes(
        lambda: model.train_on_batch(*others[0])
    )
    held = bytes_of(model.variables) + bytes_of(model.optimizer.variables)
    seconds, losses = [], []
    for batch in others:
        start = time.perf_counter()
        model.reset_metrics()
        losses.append(float(model.train_on_batch(*batch)[0]))
        seconds.append(time.perf_counter() - start)
    return {
        "peak": (peak or 0) + held,
        "held": held,
        "seconds": statistics.median(seconds),
        "loss": losses[-1],
    }


def bytes_of(variables):
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
    return int(sum(np.prod(v.shape) * sizes.get(v.dtype, 4) for v in variables))


def in_a_process(version, arguments):
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--version", version],
        env={
            **os.environ,
            "KERAS_BACKEND": keras.config.backend(),
            "MALLOC_MMAP_THRESHOLD_": "131072",
            "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


"""
## What came out

A table and a picture. What the step takes besides parameters and the state of
the optimizer is what `chunk_loss` and `recompute` work on; `held` is what
`Adam8bit` and weights of 16 bits work on.
"""


def show(results, path):
    table = Table(title=keras.config.backend())
    for name in ("", "peak MB", "of it held", "s a step", "loss"):
        table.add_column(name)
    for version, found in results.items():
        table.add_row(
            version,
            f"{found['peak'] / 1e6:,.0f}",
            f"{found['held'] / 1e6:,.0f}",
            f"{found['seconds']:.2f}",
            f"{found['loss']:.3f}",
        )
    Console().print(table)
    try:
        import matplotlib
    except ImportError:
        return
    if "MPLBACKEND" not in os.environ:  # a notebook sets it
        matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    names = list(results)[::-1]
    for key, label in (("peak", "a step"), ("held", "parameters, optimizer")):
        axes.barh(names, [results[n][key] / 1e6 for n in names], label=label)
    axes.set_xlabel("MB at the peak")
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"Wrote {path}")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="of sequences")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--picture", default="large_vocabulary.png")
    parser.add_argument("--version", choices=VERSIONS, help="only this one")
    options = parser.parse_args()
    if options.version:
        print(json.dumps(measure(options.version, options)))
        return
    arguments = [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in (
            *("words", "depth", "width", "length", "batch_size", "steps"),
            "learning_rate",
        )
    ]
    results = {
        version: in_a_process(version, arguments) for version in VERSIONS
    }
    show(results, options.picture)


if __name__ == "__main__":
    main()
