"""Compare the optimizers of this package with Keras': time and bytes.

Parameters and gradients of random numbers, 20 million in 14 matrices, as in two
blocks of a transformer, or 50 million in one embedding, are given to the
optimizers. Each backend and each workload gets its own process; in it the
contenders take turns, one step each a round, on the same parameters:

- Keras' Adam, AdamW, Lion and Adafactor;
- MicroAdam, Adam8bit, AdamW8bit, Lion8bit and SinkGD, as they are installed,
  and in the portable form, without kernels;
- on PyTorch also `torch.optim.AdamW(fused=True)` and, if they are installed,
  torchao's and bitsandbytes' AdamW of 8 bits.

"ms" is the median over rounds of one step, "ratio" the median over rounds of
the ratio to Keras' Adam. "bytes" of state are per parameter. "extra" is how far
memory rises during a step above what is held before it, in percent of the
parameters. On the CPU it is that of the process, from Linux; on CUDA that of
the allocator of PyTorch or TensorFlow ("-" for JAX, which does not tell).

JAX: `jax.jit` of `stateless_apply`, with donated buffers. TensorFlow:
`tf.function` of `apply`, with `jit_compile=True` for "tensorflow-xla". PyTorch:
`apply`, with as many threads as cores.
"""

import argparse
import json
import os
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.optimizers_bounds import tabulate_bounds
from benchmarks.process import run_worker

MODES = ("jax", "tensorflow", "tensorflow-xla", "torch")
WORKLOADS = {"matrices": 20.0, "embedding": 50.0}  # million parameters


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    parser.add_argument(
        "--workload", choices=WORKLOADS, action="append", help=help
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help = "million parameters, in place of 20 and 50"
    parser.add_argument("--size", type=float, help=help)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32"
    )
    help = "timed rounds, after 2 that are not"
    parser.add_argument("--steps", type=int, default=9, help=help)
    help = "contender to measure beside Keras' Adam; may be repeated"
    parser.add_argument("--only", action="append", help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    modes = options.backend or MODES
    workloads = options.workload or list(WORKLOADS)
    if options.worker:
        from benchmarks import optimizers_worker

        result = optimizers_worker.run(modes[0], workloads[0], options)
        Path(options.worker).write_text(json.dumps(result))
        return 0
    console = Console()
    console.print(
        f"{os.cpu_count()} cores. Other machines, and other hours on this "
        "one, give other times: only ratios within one run count."
    )
    runs = []
    for mode in modes:
        for workload in workloads:
            console.print(f"Measuring {mode}, {workload} ...")
            runs.append(measure(mode, workload, options))
            show_notes(console, runs[-1])
    console.print(tabulate(runs))
    console.print(tabulate_bounds(runs))
    if options.output:
        Path(options.output).write_text(json.dumps(runs, indent=1) + "\n")
    return int(any("error" in run for run in runs))


def measure(mode, workload, options):
    """Run one process; return what it found, or `{"error": ...}`."""
    size = options.size or WORKLOADS[workload]
    words = ["--workload", workload, "--size", str(size)]
    words += ["--dtype", options.dtype, "--steps", str(options.steps)]
    for name in options.only or ():
        words += ["--only", name]
    return {
        "backend": mode,
        "workload": workload,
        "device": options.device,
        "dtype": options.dtype,
        "million parameters": size,
        **run_worker("optimizers", mode, options.device, words),
    }


def show_notes(console, run):
    """Print what does not fit the table."""
    where = f"{run['backend']}, {run['workload']}"
    if "error" in run:
        console.print(f"{where}: fails: {run['error']}")
        return
    console.print(f"{where}: kernels: {run['kernels']}")
    for name, row in run["contenders"].items():
        if "fails" in row:
            console.print(f"{where}, {name}: fails: {row['fails']}")
    if run["not installed"]:
        console.print(f"not installed: {', '.join(run['not installed'])}")


def tabulate(runs):
    table = Table(title="Steps of optimizers", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("backend", "workload", "contender"):
        table.add_column(column)
    for column in ("ms", "ratio", "bytes", "extra %"):
        table.add_column(column, justify="right")
    for run in runs:
        where = run["backend"], run["workload"]
        if "error" in run:
            table.add_row(*where, "", "fails")
        for name, row in run.get("contenders", {}).items():
            if "fails" in row:
                table.add_row(*where, name, "fails")
                continue
            extra = row["extra bytes"]
            size = run["parameter bytes"]
            table.add_row(
                run["backend"],
                run["workload"],
                name,
                f"{row['median ms']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['state bytes'] / run['parameters']:.2f}",
                "-" if extra is None else f"{100 * extra / size:.1f}",
            )
        table.add_section()
    return table
