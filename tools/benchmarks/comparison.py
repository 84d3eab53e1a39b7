"""What benchmarks share that train tasks with optimizers, a process each."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.reversible import MODES

ROOT = Path(__file__).resolve().parent.parent.parent


def add_arguments(parser, tasks, optimizers, tuning_seeds):
    help = "may be repeated; defaults to all"
    parser.add_argument("--task", choices=tasks, action="append", help=help)
    parser.add_argument(
        "--optimizer", choices=optimizers, action="append", help=help
    )
    parser.add_argument(
        "--backend", choices=MODES, default="jax", help="defaults to jax"
    )
    parser.add_argument("--seeds", type=int, default=5)
    help = "other seeds, to choose settings with"
    parser.add_argument(
        "--tuning-seeds", type=int, default=tuning_seeds, help=help
    )
    help = "of training, a part of the full length, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def compare(name, options, tasks, optimizers, tabulate):
    """Run a benchmark and print a table for each task.

    Args:
        name: String, that of the benchmark; `{name}_worker.run(task,
            optimizer, options)` returns a dictionary for JSON.
        options: What `argparse` made of `add_arguments`.
        tasks: Tuple of strings.
        optimizers: Tuple of strings.
        tabulate: Function of a task and a list of such dictionaries.

    Returns:
        Exit status: whether a process failed.
    """
    tasks = options.task or tasks
    optimizers = options.optimizer or optimizers
    if options.worker:
        worker = importlib.import_module(f"benchmarks.{name}_worker")
        result = worker.run(tasks[0], optimizers[0], options)
        Path(options.worker).write_text(json.dumps(result))
        return 0
    console = Console()
    results = []
    for task in tasks:
        for optimizer in optimizers:
            console.print(f"Training {task} with {optimizer} ...")
            results.append(_in_a_process(name, task, optimizer, options))
            if options.output:
                text = json.dumps(results, indent=1) + "\n"
                Path(options.output).write_text(text)
        console.print(tabulate(task, results[-len(optimizers) :]))
    return int(any("error" in result for result in results))


def _in_a_process(name, task, optimizer, options):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, ROOT / "tools" / "benchmark.py"]
        command += [name, "--task", task, "--optimizer", optimizer]
        command += ["--backend", options.backend, "--worker", file]
        for option in ("seeds", "tuning_seeds", "scale", "weights"):
            value = getattr(options, option, None)
            if value is None:
                continue
            command += [f"--{option.replace('_', '-')}", str(value)]
        backend, _, _ = options.backend.partition("-")
        environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        result = {"task": task, "optimizer": optimizer}
        if done.returncode:
            return {**result, "error": done.stderr.strip().splitlines()[-1:]}
        return {**result, **json.loads(file.read_text())}


def spread(runs, key):
    """Return mean and deviation of one figure of several runs."""
    values = [run[key] for run in runs]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": float(np.mean(values)),
        "deviation": deviation,
        "values": values,
    }
