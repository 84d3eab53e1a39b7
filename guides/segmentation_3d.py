"""
Title: Segment volumes in a fraction of the memory
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: A reversible 3D U-Net beside its plain twin on synthetic volumes.
Accelerator: None
"""

"""
## What this guide does

It trains one 3D U-Net twice, plainly and reversibly, to find balls and cubes
in noisy volumes. It prints the Dice coefficient that each run reached on
volumes it has not seen, and the bytes that a training step kept for its
backward pass, and draws a slice in `segmentation_3d.png`.

```shell
KERAS_BACKEND=jax python guides/segmentation_3d.py
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
import matplotlib
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

import keras_efficient

if "MPLBACKEND" not in os.environ:  # a notebook sets it
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLASSES = ("background", "ball", "cube")

"""
## The data

The volumes are synthetic: bright balls and cubes at random places, of random
sizes and brightness, in noise that is as bright as they are. No medical data
are needed to see what memory a network takes; how well it does on them, a run
on them has to tell.
"""


def synthetic_volumes(count, edge, seed):
    """Return volumes `(count, edge, edge, edge, 1)` and one-hot labels."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1)
    labels = np.zeros((count, edge, edge, edge), "int32")
    volumes = np.zeros(labels.shape, "float32")
    for label, volume in zip(labels, volumes):
        for shape in (1, 2, 1, 2):
            center = rng.uniform(0.2 * edge, 0.8 * edge, 3)
            radius = rng.uniform(0.1 * edge, 0.2 * edge)
            away = np.abs(grid - center)
            size = np.sqrt((away**2).sum(-1)) if shape == 1 else away.max(-1)
            label[size < radius] = shape
            volume[size < radius] = rng.uniform(0.8, 1.2)
    volumes += rng.normal(scale=0.5, size=volumes.shape)
    onehot = np.eye(len(CLASSES), dtype="float32")[labels]
    return volumes[..., None], onehot


"""
## The network and its loss

At each level of the U stands a run of reversible bottlenecks. The plain twin
is the same network, `reversible=False`: the same variables, the same
function, with the activations stored.
"""


def build(options, reversible):
    return keras_efficient.models.ReversibleUNet(
        rank=3,
        filters=tuple(options.width * 2**i for i in range(3)),
        depth=options.depth,
        input_shape=(options.edge,) * 3 + (1,),
        classes=len(CLASSES),
        reversible=reversible,
    )


def dice_and_cross_entropy(y_true, y_pred):
    axes = (1, 2, 3)
    overlap = 2 * ops.sum(y_true * y_pred, axis=axes)
    size = ops.sum(y_true, axis=axes) + ops.sum(y_pred, axis=axes)
    dice = ops.mean((overlap + 1) / (size + 1), axis=-1)
    entropy = keras.losses.categorical_crossentropy(y_true, y_pred)
    return ops.mean(entropy, axis=axes) + 1 - dice


def dice(y_true, y_pred):
    """Return the Dice coefficient of each class, of all volumes together."""
    found = np.eye(len(CLASSES))[y_pred.argmax(-1)]
    axes = (0, 1, 2, 3)
    size = y_true.sum(axes) + found.sum(axes)
    return 2 * (y_true * found).sum(axes) / np.maximum(size, 1)


"""
## One run
"""


def train(name, options, seed):
    keras.utils.set_random_seed(seed)
    count = options.steps * options.batch_size
    x, y = synthetic_volumes(count, options.edge, seed)
    x_test, y_test = synthetic_volumes(8, options.edge, 1000 + seed)
    model = build(options, reversible=name == "reversible")
    model.compile(
        keras.optimizers.Adam(options.learning_rate), dice_and_cross_entropy
    )
    print(f"\n{name}, seed {seed}: {model.count_params():,} parameters")
    start = time.perf_counter()
    model.fit(
        x, y, batch_size=options.batch_size, epochs=options.epochs, verbose=2
    )
    seconds = time.perf_counter() - start
    predicted = model.predict(x_test, options.batch_size, verbose=0)
    return {
        "dice": 100 * dice(y_test, predicted)[1:],
        "bytes": keras_efficient.utils.saved_activation_bytes(
            model, x[: options.batch_size]
        ),
        "seconds": seconds,
        "slice": (x_test[0], y_test[0], predicted[0]),
    }


"""
## What came out
"""


def show(results, seeds):
    table = Table(
        "", *results, title=f"{keras.config.backend()}, {seeds} seed(s)"
    )
    for i, label in enumerate(CLASSES[1:]):
        values = [np.mean([r["dice"][i] for r in v]) for v in results.values()]
        table.add_row(f"Dice of a {label}, %", *[f"{v:.1f}" for v in values])
    for label, key in (
        ("bytes kept for the backward pass", "bytes"),
        ("seconds, with compilation", "seconds"),
    ):
        values = [np.mean([r[key] for r in v]) for v in results.values()]
        table.add_row(label, *[f"{v:,.0f}" for v in values])
    Console().print(table)


def draw(results, path):
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    volume, truth, _ = results["plain"][0]["slice"]
    middle = len(volume) // 2
    pictures = {
        "volume": volume[middle, ..., 0],
        "truth": truth[middle].argmax(-1),
    }
    for name, (result, *_) in results.items():
        pictures[name] = result["slice"][2][middle].argmax(-1)
    for ax, (title, picture) in zip(axes, pictures.items()):
        ax.imshow(picture, cmap="gray" if title == "volume" else "viridis")
        ax.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    print(f"Wrote {path}")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    help = "training steps an epoch"
    parser.add_argument("--steps", type=int, default=15, help=help)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--edge", type=int, default=20, help="of a volume")
    parser.add_argument("--depth", type=int, default=2, help="blocks a run")
    help = "channels of the finest level"
    parser.add_argument("--width", type=int, default=8, help=help)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--output", default="segmentation_3d.png")
    options = parser.parse_args()

    results = {"plain": [], "reversible": []}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(train(name, options, seed))
    show(results, options.seeds)
    draw(results, options.output)


if __name__ == "__main__":
    main()
