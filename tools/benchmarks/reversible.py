"""Compare reversible training with plain training: time and bytes kept.

16 additive couplings, of LayerNormalization-Dense-gelu-Dense (`mlp`), of 3 x 3
convolutions (`conv`) or of attention and a feed-forward layer (`transformer`),
are trained by SGD on one batch. Each backend and
each kind of block gets its own process; in it the contenders take turns, one
training step each a round, so that they meet the same weather:

- plain: `ReversibleSequence(..., reversible=False)`, activations stored;
- reversible: `ReversibleSequence`;
- Recompute: `keras_efficient.layers.Recompute`, one segment a block;
- keras.remat: what Keras has for this, one segment a block;
- torch plain, memcnn, revlib: the same blocks as modules of PyTorch, with the
  same weights, stored or under these packages (if they are installed).

All have to report the same losses, or there is nothing to compare.

"ms/step" is the median over rounds of one `train_on_batch` (or its like:
forward, backward, update), the "ratio" after it the median over rounds of the
ratio to the plain contender of the same library. "MB kept" is what lies in
memory for the backward pass. On PyTorch these are all tensors alive between
the forward and the backward pass, the outputs among them, parameters and batch
not; "MB peak" is the most during both, with gradients. On JAX and TensorFlow,
"MB kept" is `keras_efficient.utils.saved_activation_bytes`: on JAX a peak, on
TensorFlow that of the graph, before XLA has a say.
"""

import argparse
import json
import os
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.process import run_worker

MODES = ("jax", "tensorflow", "tensorflow-xla", "torch")
KINDS = ("mlp", "conv", "transformer")
TARGET = 1.33  # four evaluations' worth of work instead of three


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    parser.add_argument("--kind", choices=KINDS, action="append", help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--depth", type=int, default=16, help="blocks")
    help = "also measure how bytes grow from the depth to so many times it"
    parser.add_argument("--deeper", type=int, default=1, help=help)
    help = "timed rounds, after 3 that are not"
    parser.add_argument("--steps", type=int, default=15, help=help)
    help = "of the batch, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    modes, kinds = options.backend or MODES, options.kind or KINDS
    if options.worker:
        from benchmarks import reversible_worker

        result = reversible_worker.run(modes[0], kinds[0], options)
        Path(options.worker).write_text(json.dumps(result))
        return 0
    console = Console()
    console.print(
        f"{os.cpu_count()} cores. Other machines, and other hours on this "
        "one, give other times: only ratios within one run count."
    )
    runs = []
    for mode in modes:
        for kind in kinds:
            console.print(f"Measuring {mode}, {kind} ...")
            runs.append(measure(mode, kind, options))
            show_notes(console, runs[-1])
    console.print(tabulate(runs))
    if options.output:
        Path(options.output).write_text(json.dumps(runs, indent=1) + "\n")
    return int(any("error" in run for run in runs))


def measure(mode, kind, options):
    """Run one process; return what it found, or `{"error": ...}`."""
    words = ["--kind", kind]
    for name in ("depth", "deeper", "steps", "scale"):
        words += [f"--{name}", str(getattr(options, name))]
    return {
        "backend": mode,
        "kind": kind,
        "device": options.device,
        **run_worker("reversible", mode, options.device, words),
    }


def show_notes(console, run):
    """Print what does not fit the table."""
    where = f"{run['backend']}, {run['kind']}"
    if "error" in run:
        console.print(f"{where}: fails: {run['error']}")
    for name, row in run.get("contenders", {}).items():
        if "fails" in row:
            console.print(f"{where}, {name}: fails: {row['fails']}")
    missing = run.get("not installed")
    if missing:
        names = ", ".join(missing), " ".join(missing)
        console.print("{}: not installed (pip install {})".format(*names))
    grown = run.get("growth")
    if grown:
        console.print(
            f"{where}: bytes of a deeper network on top: plain "
            f"{megabytes(grown['plain'])} MB, reversible "
            f"{megabytes(grown['reversible'])} MB"
        )
    for name, ratio in run.get("reversible over", {}).items():
        console.print(
            f"{where}: reversible over {name}: time {ratio['time']:.2f}, "
            f"bytes kept {ratio['kept']:.2f}, peak {ratio['peak']:.2f}"
        )


def tabulate(runs):
    title = f"Training steps (target: reversible at most {TARGET} of plain)"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("backend", "block", "contender"):
        table.add_column(column)
    for column in ("ms/step", "ratio", "MB kept", "ratio", "MB peak"):
        table.add_column(column, justify="right")
    for run in runs:
        where = run["backend"], run["kind"]
        if "error" in run:
            table.add_row(*where, "", "fails")
        for name, row in run.get("contenders", {}).items():
            if "fails" in row:
                table.add_row(*where, name, "fails")
                continue
            table.add_row(
                run["backend"],
                run["kind"],
                name,
                f"{row['median ms']:.1f}",
                f"{row['ratio']:.2f}",
                megabytes(row["kept"]),
                f"{row['kept ratio']:.3f}",
                megabytes(row.get("peak")),
            )
        table.add_section()
    return table


def megabytes(count):
    return "-" if count is None else f"{count / 1e6:.2f}"
