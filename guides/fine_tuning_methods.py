"""
Title: Which method to fine-tune with
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Six methods on one task: bytes of state, seconds and loss.
Accelerator: None
"""

"""
## What this guide does

It fine-tunes one small GPT-2 of KerasHub by seven methods, all from the same
weights and with the same batches, and prints for each the bytes of optimizer
state, the seconds, and the loss on text that it has not seen:

- all weights with AdamW, and with `Adam8bit`,
- low-rank adapters beside frozen weights (`enable_lora` of Keras),
- `LISA`: two blocks at a time, in turn, with state in float32 and in 8 bits,
- `SelectedAdam`: the smallest tenth of the weights,
- `Unfreezing`: the head first, then one block more at a time.

```shell
pip install "keras_efficient[nlp]"
KERAS_BACKEND=torch python guides/fine_tuning_methods.py
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
import keras_hub
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient

"""
## Two texts

One half of Python's help texts is for pre-training, the other half is to be
fine-tuned on; its last tenth is held out. Tokens are bytes.
"""


def texts():
    topics = pydoc_data.topics.topics
    names = np.array_split(sorted(topics), 2)
    first, second = (
        np.frombuffer("\n\n".join(topics[n] for n in half).encode(), "uint8")
        for half in names
    )
    border = len(second) * 9 // 10
    return [
        x.astype("int32") for x in (first, second[:border], second[border:])
    ]


def windows(tokens, length, step):
    """Return inputs and targets of `length` tokens, each `step` further."""
    view = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::step]
    token_ids, targets = view[:, :-1], view[:, 1:]
    mask = np.ones_like(token_ids)
    return {"token_ids": token_ids, "padding_mask": mask}, targets


"""
## The network

Layers of the backbone have the names that the optimizers ask for:
`transformer_layer_0` and so on.
"""


def build(options):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=options.depth,
        num_heads=4,
        hidden_dim=options.width,
        intermediate_dim=4 * options.width,
        dropout=0.0,
        max_sequence_length=options.length,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def blocks(task):
    layers = [layer.name for layer in task.backbone.layers]
    return [name for name in layers if name.startswith("transformer_layer")]


"""
## The methods

Each function returns an optimizer for the task; LoRA also changes the task.
Embeddings and the last normalization are always trained by LISA. Learning
rates are the best of 3e-4, 1e-3, 3e-3 and 1e-2 for each method.
"""

DECAY = 0.01


def adamw(task, options):
    return keras.optimizers.AdamW(1e-3, weight_decay=DECAY)


def adam_8bit(task, options):
    return keras_efficient.optimizers.AdamW8bit(
        1e-3, weight_decay=DECAY, min_size=1024
    )


def lora(task, options):
    task.backbone.enable_lora(rank=4)
    return keras.optimizers.AdamW(1e-2, weight_decay=DECAY)


def lisa(task, options, moments="float32"):
    return keras_efficient.optimizers.LISA(
        1e-3,
        blocks=blocks(task),
        active_blocks=min(2, options.depth),
        period=options.period,
        moments=moments,
        weight_decay=DECAY,
        min_size=1024,
    )


def lisa_8bit(task, options):
    return lisa(task, options, "8bit")


def selected(task, options):
    return keras_efficient.optimizers.SelectedAdam(
        3e-3, density=0.1, weight_decay=DECAY, min_size=1024
    )


def unfreezing(task, options):
    layers = [layer.name for layer in task.backbone.layers]
    below = [name for name in layers if "embedding" in name]
    top = ["layer_norm"]
    groups = [top, *([name] for name in reversed(blocks(task))), below]
    return keras_efficient.optimizers.Unfreezing(
        keras.optimizers.AdamW(1e-3, weight_decay=DECAY),
        groups,
        interval=max(1, options.steps // (2 * len(groups))),
    )


METHODS = {
    "AdamW": adamw,
    "Adam8bit": adam_8bit,
    "LoRA, rank 4": lora,
    "LISA": lisa,
    "LISA, 8 bits": lisa_8bit,
    "SelectedAdam": selected,
    "Unfreezing": unfreezing,
}

"""
## Training

Windows are drawn at random, the same ones for all methods of a seed. The
first step, which compiles, is not in the seconds.
"""


def compiled(task, optimizer):
    task.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )


def train(task, tokens, steps, seed, options):
    """Return the seconds of all steps but the first."""
    inputs, targets = windows(tokens, options.length, 1)
    rng = np.random.default_rng(seed)
    size = options.batch_size
    start = None
    for _ in range(steps):
        rows = rng.integers(len(targets), size=size)
        batch = {name: x[rows] for name, x in inputs.items()}
        task.train_on_batch(batch, targets[rows])
        start = start or time.perf_counter()
    return time.perf_counter() - start


def evaluate(task, tokens, options):
    """Return nats a token; held-out windows do not overlap."""
    inputs, targets = windows(tokens, options.length, options.length)
    return task.evaluate(inputs, targets, batch_size=64, verbose=0)


"""
## One run of a method
"""


def fine_tune(method, weights, data, seed, options):
    keras.utils.set_random_seed(seed)
    task = build(options)
    task.backbone.set_weights(weights)
    tokens, held_out = data
    compiled(task, method(task, options))
    seconds = train(task, tokens, options.steps, seed, options)
    return {
        "bytes": keras_efficient.utils.optimizer_state_bytes(task.optimizer),
        "seconds": seconds,
        "loss": evaluate(task, held_out, options),
    }


"""
## The table and the picture
"""


def show(before, results):
    table = Table(title=f"{keras.config.backend()}, {before:.3f} before")
    for column in ("", "bytes of state", "seconds", "nats a token"):
        table.add_column(column)
    for name, runs in results.items():
        losses = [run["loss"] for run in runs]
        table.add_row(
            name,
            f"{runs[0]['bytes']:,}",
            f"{np.median([run['seconds'] for run in runs]):.1f}",
            f"{np.mean(losses):.3f} +- {np.std(losses):.3f}",
        )
    Console().print(table)


def draw(before, results, path):
    try:
        import matplotlib
    except ImportError:
        print("without matplotlib there is no picture")
        return
    if "MPLBACKEND" not in os.environ:  # a notebook sets it
        matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, runs in results.items():
        x = runs[0]["bytes"] / 1e3
        y = np.mean([run["loss"] for run in runs])
        axes.plot(x, y, "o")
        axes.annotate(
            name, (x, y), (6, 0), textcoords="offset points", va="center"
        )
    axes.axhline(before, color="gray", ls=":", label="before fine-tuning")
    axes.legend(loc="lower left", frameon=False)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.25)
    axes.set_xlabel("kilobytes of optimizer state")
    axes.set_ylabel("nats a token, held out")
    figure.savefig(path)


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    help = "before fine-tuning"
    parser.add_argument("--first-steps", type=int, default=200, help=help)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=6, help="layers")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=64, help="tokens")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--period", type=int, default=10, help="of LISA")
    parser.add_argument("--output", default="fine_tuning_methods.png")
    options = parser.parse_args()

    keras.utils.set_random_seed(0)
    first, *data = texts()
    task = build(options)
    compiled(task, keras.optimizers.Adam(3e-3))
    train(task, first, options.first_steps, 0, options)
    weights = task.backbone.get_weights()
    before = evaluate(task, data[1], options)
    results = {
        name: [
            fine_tune(method, weights, data, seed, options)
            for seed in range(options.seeds)
        ]
        for name, method in METHODS.items()
    }
    show(before, results)
    draw(before, results, options.output)


if __name__ == "__main__":
    main()
