"""Compare with packages for PyTorch: values, gradients, bytes and time.

Contenders of a task take the same numbers, and turns. The first row of each is
of PyTorch alone, with which the others are compared:

- couplings: 16 additive couplings of LayerNorm-Linear-GELU-Linear. Reversible
  are this library, with Keras layers and with the same modules, memcnn and
  revlib; FrEIA has the coupling, and stores its activations.
- resampling: the learned invertible downsampling of this library and iunets.
- optimizer: AdamW with states of 8 bits, of this library, torchao and
  pytorch_optimizer. "values" is the error of all updates of 20 steps.

"values" and "gradients" are errors relative to the first row, in the 2-norm.
"MB kept" is what lies in memory between forward and backward pass, the outputs
among it, or the state of the optimizer. "ratio" is the median over rounds of
the ratio of times within a round.

The packages are those of the extra `peers` (`pip install .[peers]`); rows of
those that are missing say so.
"""

import argparse
import json
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.process import run_worker

TASKS = ("couplings", "resampling", "optimizer")


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--task", choices=TASKS, action="append", help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help = "timed rounds, after 3 that are not"
    parser.add_argument("--steps", type=int, default=15, help=help)
    help = "of the batch or of the parameters, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--backend", default="torch", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    tasks = options.task or TASKS
    if options.worker:
        from benchmarks import peers_worker

        found = peers_worker.run(tasks[0], options)
        Path(options.worker).write_text(json.dumps(found))
        return 0
    console = Console()
    found = {}
    for task in tasks:
        words = ["--task", task, "--steps", str(options.steps)]
        words += ["--scale", str(options.scale)]
        found[task] = run_worker("peers", "torch", options.device, words)
        console.print(tabulate(task, found[task]))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n")
    return int(any("error" in rows for rows in found.values()))


def tabulate(task, rows):
    table = Table(title=task, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("contender")
    for column in ("values", "gradients", "MB kept", "ms/step", "ratio"):
        table.add_column(column, justify="right")
    if "error" in rows:
        table.add_row("", rows["error"])
        return table
    for name, row in rows.items():
        if "why" in row:
            table.add_row(name, row["why"])
            continue
        gradients = row.get("gradients")
        table.add_row(
            name,
            f"{row['values']:.1e}",
            "-" if gradients is None else f"{gradients:.1e}",
            f"{row['kept'] / 1e6:.2f}",
            f"{row['median ms']:.1f}",
            f"{row['ratio']:.2f}",
        )
    return table
