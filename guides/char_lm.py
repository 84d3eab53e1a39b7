"""
Title: A language model in less memory
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: A transformer on characters, plain and compressed.
Accelerator: None
"""

"""
## What this guide does

It trains one transformer twice to predict the next character of Python's own
help texts, which come with Python: plainly, with Adam, and then reversibly,
with MicroAdam. It prints how many bits a character either takes on text that
it has not seen, the bytes each keeps, and text that the second has written.

```shell
KERAS_BACKEND=jax python guides/char_lm.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os
import pydoc_data.topics
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient

"""
## The text

The help texts of the language reference, `help("while")` and so on, are a
dictionary of some hundred entries. The entries of the last tenth of the
characters are held out.
"""


def load(length):
    """Return the alphabet and windows of `length + 1` characters."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    text = "".join(c if c.isascii() else "?" for c in text)
    alphabet = sorted(set(text))
    codes = np.searchsorted(alphabet, list(text)).astype("int32")
    windows = np.lib.stride_tricks.sliding_window_view(codes, length + 1)
    border = len(codes) * 9 // 10
    # Held-out windows do not overlap: each character is counted once.
    return alphabet, windows[: border - length], windows[border::length]


"""
## The model

`ReversibleCausalLM` is a decoder on two streams: attention reads the second
and adds to the first, the feed-forward layers read the first and add to the
second. `reversible=False` is the same network with its activations stored.
"""


def build(characters, options, reversible):
    model = keras_efficient.models.ReversibleCausalLM(
        vocabulary_size=characters,
        num_layers=options.depth,
        num_heads=4,
        hidden_dim=options.width,
        intermediate_dim=4 * options.width,
        reversible=reversible,
    )
    steps = options.epochs * options.steps
    rate = keras.optimizers.schedules.CosineDecay(
        options.learning_rate / 10,
        steps,
        warmup_target=options.learning_rate,
        warmup_steps=max(1, steps // 10),
    )
    optimizer = keras.optimizers.Adam(rate)
    if reversible:
        optimizer = keras_efficient.optimizers.MicroAdam(rate)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


"""
## One run
"""


def train(name, options, data, seed):
    keras.utils.set_random_seed(seed)
    alphabet, windows, held_out = data
    model = build(len(alphabet), options, name == "reversible")
    print(f"\n{name}, seed {seed}: {model.count_params():,} parameters")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(
        len(windows), size=(options.epochs, options.steps * options.batch_size)
    )
    seconds = []
    for epoch, rows in enumerate(chosen):
        batch = windows[rows]
        start = time.perf_counter()
        history = model.fit(
            batch[:, :-1],
            batch[:, 1:],
            batch_size=options.batch_size,
            shuffle=False,
            verbose=0,
        )
        seconds.append(time.perf_counter() - start)
        loss = history.history["loss"][0] / np.log(2)
        print(f"epoch {epoch + 1}: {loss:.3f} bits a character")
    loss = model.evaluate(
        held_out[:, :-1], held_out[:, 1:], batch_size=64, verbose=0
    )
    x = held_out[: options.batch_size, :-1]
    report = keras_efficient.utils.memory_report(model, x, verbose=0)
    return {
        "model": model,
        "bits": loss / np.log(2),
        "peak": report.usage["as it is"].peak,
        "kept": keras_efficient.utils.saved_activation_bytes(model, x),
        "state": keras_efficient.utils.optimizer_state_bytes(model.optimizer),
        # The first epoch compiles.
        "seconds": np.median(seconds[1:] or seconds) / options.steps,
    }


"""
## What came out
"""


def show(results):
    seeds = len(results["plain"])
    table = Table(title=f"{keras.config.backend()}, mean of {seeds} seed(s)")
    for column in ("", "plain, Adam", "reversible, MicroAdam"):
        table.add_column(column)
    for label, key, form in (
        ("bits a character, held out", "bits", "{:.3f}"),
        ("peak bytes of a step, all in all", "peak", "{:,.0f}"),
        ("bytes kept for the backward pass", "kept", "{:,.0f}"),
        ("bytes of optimizer state", "state", "{:,.0f}"),
        ("seconds a step", "seconds", "{:.3f}"),
    ):
        means = [
            np.mean([run[key] for run in runs]) for runs in results.values()
        ]
        table.add_row(label, *map(form.format, means))
    Console().print(table)


"""
## A sample

`generate` keeps the keys and values of what has been written, so that a new
character costs one position. Beyond the length of the windows in training a
model has not learned to read, so the samples are as long as these.
"""


def sample(model, alphabet, prompt, options):
    codes = np.searchsorted(alphabet, list(prompt))
    codes = np.tile(codes, (options.samples, 1))
    written = model.generate(
        codes, options.length - len(prompt), temperature=0.7, seed=0
    )
    for codes in keras.ops.convert_to_numpy(written):
        print(repr("".join(alphabet[code] for code in codes)))


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="an epoch")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--width", type=int, default=64, help="of a stream")
    parser.add_argument("--length", type=int, default=64, help="characters")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()

    data = load(options.length)
    results = {"plain": [], "reversible": []}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(train(name, options, data, seed))
    show(results)
    model = results["reversible"][-1]["model"]
    sample(model, data[0], "The ", options)


if __name__ == "__main__":
    main()
