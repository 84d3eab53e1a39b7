"""Find the largest reversible U-Net for volumes that fits a budget of bytes.

The budget is what one training step of the plain network takes, at a given
edge of the volume, depth (blocks in each of the five runs of a U of three
levels) and width (channels of the finest level); batches are of one volume.
Then each version, plain and reversible, is given this budget, and edge, depth
and width grow in turn, the other two as they were, until a step takes more.

Bytes are measured, not estimated. On PyTorch they are the most that is alive
at any time of the forward and the backward pass, gradients among it; on JAX
the temporary memory of the compiled gradient, which is a peak too; on
TensorFlow what the backward part of the graph reads from its forward part.
Parameters, optimizer state and the batch do not count.

The published figures are those of the abstract of Pendse et al., 2021
(https://arxiv.org/abs/2104.09648), for another network on other hardware:
volumes 3 times as large, 25 % more depth, or twice the channels.
"""

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

BACKENDS = ("torch", "jax", "tensorflow")
LEVELS = 3
PUBLISHED = {"volume": 3.0, "depth": 1.25, "width": 2.0}


def add_arguments(parser):
    parser.add_argument("--backend", choices=BACKENDS, default="torch")
    help = "of the volume that sets the budget; a multiple of 4"
    parser.add_argument("--edge", type=int, default=24, help=help)
    parser.add_argument("--depth", type=int, default=2, help="the same")
    parser.add_argument("--width", type=int, default=8, help="the same; even")
    help = "where to stop growing, as a multiple of the start"
    parser.add_argument("--limit", type=int, default=8, help=help)
    parser.add_argument("--output", help="JSON file to write")


def main(options):
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    console = Console()
    start = {key: getattr(options, key) for key in ("edge", "depth", "width")}
    budget = measure(False, **start)
    console.print(f"Budget: {budget:,} bytes, the plain network at {start}")
    found = {"backend": options.backend, "start": start, "budget": budget}
    for name, reversible in (("plain", False), ("reversible", True)):
        found[name] = {
            key: largest(
                lambda value: measure(reversible, **{**start, key: value}),
                start[key],
                {"edge": 2 ** (LEVELS - 1), "depth": 1, "width": 2}[key],
                options.limit * start[key],
                budget,
            )
            for key in start
        }
        console.print(f"{name}: {found[name]}")
    found["ratios"] = ratios(found)
    found["published"] = PUBLISHED
    console.print(tabulate(found))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(reversible, edge, depth, width):
    """Return the bytes of one training step."""
    import keras
    import numpy as np

    import keras_efficient

    keras.utils.set_random_seed(0)
    keras.utils.clear_session()
    model = keras_efficient.models.ReversibleUNet(
        rank=3,
        filters=tuple(width * 2**i for i in range(LEVELS)),
        depth=depth,
        input_shape=(edge, edge, edge, 1),
        reversible=reversible,
    )
    x = np.random.default_rng(0).normal(size=(1, edge, edge, edge, 1))
    x = keras.ops.convert_to_tensor(x.astype("float32"))
    if keras.config.backend() != "torch":
        return keras_efficient.utils.saved_activation_bytes(model, x)
    import functools

    from benchmarks.live_bytes import live_bytes

    weights = [variable.value for variable in model.trainable_variables]
    call = functools.partial(model, training=True)
    cotangent = keras.ops.ones((1, edge, edge, edge, 2))
    return live_bytes(call, x, cotangent, weights)["peak"]


def largest(bytes_at, start, step, limit, budget):
    """Return the largest value from `start` to `limit` that fits, and bytes.

    Doubles the value while it fits, and then halves the interval in between.
    """
    fits, taken = 0, None
    value, too_much = start, None
    while True:
        needed = bytes_at(value)
        if needed <= budget:
            fits, taken = value, needed
        else:
            too_much = value
        if fits >= limit or (too_much and too_much - fits <= step):
            break
        if too_much is None:
            value = min(2 * value, limit)
        else:
            value = fits + max((too_much - fits) // 2 // step, 1) * step
    return {"largest": fits, "bytes": taken, "at limit": fits >= limit}


def ratios(found):
    plain, ours = found["plain"], found["reversible"]
    edge, depth, width = (
        ours[key]["largest"] / plain[key]["largest"]
        for key in ("edge", "depth", "width")
    )
    return {"volume": edge**3, "depth": depth, "width": width}


def tabulate(found):
    table = Table(title=f"{found['backend']}: {found['budget']:,} bytes")
    for column in ("largest", "plain", "reversible", "ratio", "published"):
        table.add_column(
            column, justify="left" if not table.columns else "right"
        )
    for label, key in (
        ("volume", "edge"),
        ("depth", "depth"),
        ("width", "width"),
    ):
        cells = [
            f"{found[name][key]['largest']}{'^3' if key == 'edge' else ''}"
            + (" or more" if found[name][key]["at limit"] else "")
            for name in ("plain", "reversible")
        ]
        ratio = f"{found['ratios'][label]:.2f}"
        table.add_row(label, *cells, ratio, f"{PUBLISHED[label]:.2f}")
    return table
