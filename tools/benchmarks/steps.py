"""Compare the peak bytes of training steps that are run in parts.

`micro`: a batch at once, in parts (`micro_batches`), and as small batches with
the accumulators of Keras' optimizers. `tiled`: a feed-forward network on a long
sequence, plain, with `layers.Tiled`, with `recompute` where it is there, with
both. `release`: plain steps and such with `release_gradients`. Each is a
process of its own that measures its second step. TensorFlow's counts what its
allocator holds back, too.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.process import run_worker

MODES = ("jax", "tensorflow", "tensorflow-xla", "torch")
VERSIONS = {
    "micro": ("whole", "micro_batches", "accumulated"),
    "tiled": ("plain", "Tiled", "recompute", "recompute, Tiled"),
    "release": (
        *("plain", "released", "reversible", "reversible, released"),
        "global norm",
    ),
}


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--case", choices=VERSIONS, action="append", help=help)
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help = "of the published sizes, for a quick trial"
    parser.add_argument("--scale", type=float, default=1.0, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--version", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    if options.worker:
        from benchmarks.steps_worker import run

        found = run(options.case[0], options.version, options)
        Path(options.worker).write_text(json.dumps(found))
        return 0
    console, results = Console(), []
    for case in options.case or VERSIONS:
        for mode in options.backend or MODES:
            rows = []
            for version in VERSIONS[case]:
                words = ["--case", case, "--version", version]
                words += ["--scale", str(options.scale)]
                found = run_worker(
                    *("steps", mode, options.device, words),
                    # Freed memory goes back to the system at once.
                    MALLOC_MMAP_THRESHOLD_="131072",
                )
                rows.append({"case": case, "mode": mode, "version": version})
                rows[-1].update(found)
            results += rows
            console.print(tabulate(case, mode, rows))
            if options.output:
                text = json.dumps(results, indent=1) + "\n"
                Path(options.output).write_text(text)
    return int(any("error" in row for row in results))


def tabulate(case, mode, rows):
    title = f"{case}, {mode}: {rows[0].get('parameters', 0):,} parameters"
    table = Table("", "peak MB", "kept MB", "loss", title=title)
    for row in rows:
        if "error" in row:
            table.add_row(row["version"], row["error"][:60], "", "")
            continue
        table.add_row(
            row["version"],
            f"{row['peak'] / 1e6:.0f}",
            f"{row['state'] / 1e6:.0f}",
            f"{row['loss']:.5f}",
        )
    return table
