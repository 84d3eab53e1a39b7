"""Compare learning rate schedules: those to be tuned, and those that are not.

Three tasks on real data: `digits`, a convolutional network on scikit-learn's
8 x 8 digits, moved by up to a pixel in training; `measurements`, an MLP that
predicts ten measurements of a tumour from twenty others (scikit-learn's breast
cancer data); `text`, a character-level transformer on the documentation that
ships with Python.

For each task and optimizer a grid chooses the initial learning rate, with
drops to a tenth after 1/2 and 3/4 of the run; all schedules start from that
one, but "constant", which gets the best constant rate of the grid, and the
bandit, which gets candidates from 1e-4 to 0.3. Further grids choose the drops
(when, how far) of the step schedule and the factor and patience of
`ReduceLROnPlateau`. AutoDrop has one setting for all tasks and optimizers.
Grids are run on the tuning seeds, what they choose on the others: the table
shows mean and standard deviation of the final validation loss over those.
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
TASKS = ("digits", "measurements", "text")
OPTIMIZERS = ("SGD", "Adam")
AUTO, TUNED, PLATEAU = "AutoDrop auto", "step, tuned", "plateau, defaults"


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
    help = "other seeds, for the grids"
    parser.add_argument("--tuning-seeds", type=int, default=2, help=help)
    help = "of training, a part of the full length, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    tasks = options.task or TASKS
    optimizers = options.optimizer or OPTIMIZERS
    if options.worker:
        from benchmarks import schedules_worker

        result = schedules_worker.run(tasks[0], optimizers[0], options)
        Path(options.worker).write_text(json.dumps(result))
        return 0
    console = Console()
    results = []
    for task in tasks:
        for name in optimizers:
            console.print(f"Training {task} with {name} ...")
            results.append(measure(task, name, options))
            if options.output:
                text = json.dumps(results, indent=1) + "\n"
                Path(options.output).write_text(text)
        console.print(tabulate(task, results[-len(optimizers) :]))
    return int(any("error" in result for result in results))


def measure(task, name, options):
    """Run all schedules on one task with one optimizer, in one process."""
    backend, _, _ = options.backend.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, ROOT / "tools" / "benchmark.py"]
        command += ["schedules", "--task", task, "--optimizer", name]
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


def tabulate(task, results):
    """One row a schedule, one column an optimizer."""
    table = Table(title=f"{task}: final validation loss", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(result["optimizer"], no_wrap=True)
    whole = [result for result in results if "error" not in result]
    for name in whole[0]["runs"] if whole else ():
        cells = (result.get("runs", {}).get(name) for result in results)
        table.add_row(name, *map(form, cells))
    table.add_section()
    for label, key in (
        ("initial rate", "rate"),
        ("chosen drops: factor, when", "step"),
        ("chosen plateau: factor, patience", "plateau"),
    ):
        table.add_row(label, *(show(result.get(key)) for result in results))
    table.add_row("auto no worse than tuned step", *map(matches, results))
    table.add_row("auto better than plateau", *map(beats, results))
    return table


def form(cell):
    return f"{cell['mean']:.4f} ± {cell['deviation']:.4f}" if cell else "error"


def show(value):
    values = value if isinstance(value, list) else [value]
    return ", ".join("" if v is None else f"{v:.3g}" for v in values)


def matches(result):
    """Whether AutoDrop is within a standard deviation of what was tuned."""
    if "error" in result:
        return "".join(result["error"])
    auto, tuned = result["runs"][AUTO], result["runs"][TUNED]
    bound = tuned["mean"] + tuned["deviation"]
    return "yes" if auto["mean"] <= bound else "NO"


def beats(result):
    if "error" in result:
        return ""
    auto, plateau = result["runs"][AUTO], result["runs"][PLATEAU]
    return "yes" if auto["mean"] < plateau["mean"] else "NO"
