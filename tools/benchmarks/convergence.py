"""Compare what optimizers reach: loss with its spread, state, time.

Two tasks on real data: `digits`, a convolutional network on scikit-learn's
8 x 8 digits, and `text`, a character-level transformer on the documentation
that ships with Python (`pydoc_data.topics`). Adam, Lion, Adafactor and Muon
are those of Keras.

Every optimizer gets the same grid of learning rates, which fall to 0 as a
cosine over the run. SinkGD runs with
`alpha=1`: its matrices see 0.05 of the rate otherwise. The rate with the lowest
validation loss, mean over the tuning seeds, is run on the other seeds; the
table shows mean and standard deviation over those. "at Adam's" is the
validation loss at Adam's best rate, of the tuning seeds, for those who change
the optimizer and nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS = ("digits", "text")
OPTIMIZERS = (
    *("Adam", "Lion", "Adafactor", "Muon"),
    *("MicroAdam", "Adam8bit", "AdamW8bit", "Lion8bit", "SGD8bit"),
    *("LDAdam", "SinkGD"),
)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def add_arguments(parser):
    from benchmarks.reversible import MODES

    help = "may be repeated; defaults to all"
    parser.add_argument("--task", choices=TASKS, action="append", help=help)
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, action="append", help=help
    )
    parser.add_argument(
        "--backend", choices=MODES, default="jax", help="defaults to jax"
    )
    parser.add_argument("--seeds", type=int, default=5)
    help = "other seeds, to choose the learning rate with"
    parser.add_argument("--tuning-seeds", type=int, default=1, help=help)
    help = "of training, a part of the full length, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    tasks = options.task or TASKS
    optimizers = options.optimizer or OPTIMIZERS
    if options.worker:
        from benchmarks import convergence_worker

        result = convergence_worker.run(tasks[0], optimizers[0], options)
        Path(options.worker).write_text(json.dumps(result))
        return 0
    console = Console()
    results = []
    for task in tasks:
        runs = []
        for name in optimizers:
            console.print(f"Training {task} with {name} ...")
            runs.append(measure(task, name, options))
            results.append(runs[-1])
            if options.output:
                text = json.dumps(results, indent=1) + "\n"
                Path(options.output).write_text(text)
        console.print(tabulate(task, runs))
    return int(any("error" in run for run in results))


def measure(task, name, options):
    """Train one task with one optimizer in a process of its own."""
    backend, _, xla = options.backend.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, ROOT / "tools" / "benchmark.py"]
        command += ["convergence", "--task", task, "--optimizer", name]
        command += ["--backend", options.backend, "--worker", file]
        for option in ("seeds", "tuning_seeds", "scale"):
            value = getattr(options, option)
            command += [f"--{option.replace('_', '-')}", str(value)]
        environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        result = {"task": task, "optimizer": name}
        if done.returncode:
            return {**result, "error": done.stderr.strip().splitlines()[-1:]}
        return {**result, **json.loads(file.read_text())}


def tabulate(task, runs):
    table = Table(title=task, box=SIMPLE)
    for column in ("", "rate", "training", "validation"):
        table.add_column(column, no_wrap=True)
    for column in ("at Adam's", "B/param", "ms"):
        table.add_column(column, no_wrap=True, justify="right")
    adam = next((run for run in runs if run["optimizer"] == "Adam"), {})
    for run in runs:
        if "error" in run:
            table.add_row(run["optimizer"], *run["error"])
            continue
        at_rate = run["grid"].get(str(adam.get("rate")))
        table.add_row(
            run["optimizer"],
            f"{run['rate']:g}",
            *(
                f"{run[key]['mean']:.4f} ± {run[key]['deviation']:.4f}"
                for key in ("training", "validation")
            ),
            f"{at_rate:.4f}" if at_rate else "",
            f"{run['bytes']:.3f}",
            f"{run['milliseconds']:.1f}",
        )
    return table
