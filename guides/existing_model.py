"""
Title: The model you have, in the memory you have
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: A ResNet50 and a Llama with LoRA, made to fit by one line.
Accelerator: None
"""

"""
## What this guide does

It takes two networks that exist, changes nothing in them, and trains them in a
part of the memory: a ResNet50 of `keras.applications`, and a causal language
model of KerasHub with LoRA. The function that they compute stays the same, to
the last bit of rounding.

```shell
KERAS_BACKEND=torch python guides/existing_model.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time. Nothing is downloaded: weights are random.
KerasHub is the extra `nlp`; without it the second part is left out.
"""

import argparse
import importlib.util
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient

"""
## A ResNet50

`recompute` looks for the places in the graph of the model where few bytes
cross, and cuts it there. While the model trains, the activations between two
cuts are not kept for the backward pass, but computed again when it gets there.
"""


def resnet(size):
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(
        weights=None, input_shape=(size, size, 3), classes=10
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    return model


def images(count, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, size, size, 3)).astype("float32")
    return x, rng.integers(0, 10, count)


"""
The model is the same object all along, with the same variables, and its losses
are those of a plain twin. `segments=None` undoes it.
"""


def train_a_resnet(options, console):
    x, y = images(options.batch_size, options.size)
    plain, model = resnet(options.size), resnet(options.size)
    keras_efficient.recompute(model)
    table = Table(title="Loss of a ResNet50")
    for title in ("step", "plain", "recompute"):
        table.add_column(title, justify="right")
    for step in range(options.steps):
        losses = (m.train_on_batch(x, y) for m in (plain, model))
        row = (f"{float(np.ravel(loss)[0]):.6f}" for loss in losses)
        table.add_row(f"{step + 1}", *row)
    console.print(table)
    keras_efficient.recompute(model, segments=None)


"""
## What it takes, and a budget

`memory_report` measures the step as it is and with everything recomputed. With
a budget it ends in a plan: what to change so that the step fits, the least
costly first, with the lines to paste. (`memory_plan` makes the plan alone.)

With `budget`, `recompute` computes again no more than needed: the more memory
there is, the fewer segments, and the faster is the step. `plan.apply()` does in
place what the lines say.
"""


def keep_a_budget(options, console):
    model = resnet(options.size)
    report = keras_efficient.utils.memory_report(
        model, options.batch_size, budget=options.budget
    )
    if options.plot:
        report.plot(options.plot)
    if report.plan.fits:
        report.plan.apply()
        x, y = images(options.batch_size, options.size)
        loss = float(np.ravel(model.train_on_batch(x, y))[0])
        console.print(f"A step within {options.budget}: loss {loss:.6f}")


"""
## A language model with LoRA

Only the small matrices of LoRA are trained, so that the state of the optimizer
is small. What is left is the activations of the layers. They are blocks that
repeat: each is a segment. Generation, with its cache, runs as before.
"""


def fine_tune(options, console):
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=256,
        num_layers=options.depth,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=options.width,
        intermediate_dim=2 * options.width,
    )
    backbone.enable_lora(4)
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(
        keras_efficient.optimizers.Adam8bit(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    text = keras_efficient.__doc__.encode() * 100
    length = 64
    tokens = np.frombuffer(text, "uint8")[: 8 * length + 1].astype("int32")
    x = {
        "token_ids": tokens[:-1].reshape(8, length),
        "padding_mask": np.ones((8, length), "int32"),
    }
    y = tokens[1:].reshape(8, length)

    kept = keras_efficient.utils.saved_activation_bytes
    before = kept(model, x)
    keras_efficient.recompute(model)
    after = kept(model, x)
    history = model.fit(x, y, epochs=options.steps, batch_size=8, verbose=0)
    losses = history.history["loss"]
    console.print(
        f"Llama with LoRA: {before / 1e6:.1f} MB kept, {after / 1e6:.1f} MB "
        f"with `recompute`; loss {losses[0]:.2f}, then {losses[-1]:.2f}"
    )
    model.compile(sampler="greedy")
    prompt = {
        "token_ids": x["token_ids"][:1],
        "padding_mask": (np.arange(length) < length // 2)[None].astype("int32"),
    }
    output = model.generate(prompt, stop_token_ids=None)["token_ids"]
    made = np.array(keras.ops.convert_to_numpy(output))[0, length // 2 :]
    console.print(f"It generates {len(made)} bytes, as before.")


"""
## What to remember

- `keras_efficient.recompute(model)` before or after `compile`; saving,
  `generate`, LoRA and quantization go on as they are.
- It takes about a third more time for a step; with `inputs` and `budget`, less.
- Ask for it again after loading: it is a property of the object in memory.
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--budget", default="500MB")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--plot", default=None, help="file for a picture")
    parser.add_argument("--parts", default="resnet,budget,lora")
    options = parser.parse_args()
    console = Console()
    if "resnet" in options.parts:
        train_a_resnet(options, console)
    if "budget" in options.parts:
        keep_a_budget(options, console)
    if "lora" in options.parts and importlib.util.find_spec("keras_hub"):
        fine_tune(options, console)


if __name__ == "__main__":
    main()
