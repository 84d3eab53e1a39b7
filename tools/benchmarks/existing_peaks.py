"""Peaks of steps of networks that exist, plainly and recomputed.

Each network takes steps in a process of its own, compiled as `fit` does on the
backend of `KERAS_BACKEND`, in MB:

- kept: bytes for the backward pass (`utils.saved_activation_bytes`; not on JAX,
  where the compiler says no more than what a step takes in all);
- peak: how much the process grows in two steps (`utils.peak_bytes`) after two
  others;
- predicted: what `memory_plan` expects of it, from measurements of the plain
  step, in brackets how far it is from the peak.
"""

import json
import os
import subprocess
import sys

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

NETWORKS = (
    *("residual CNN", "ResNet50", "EfficientNetV2B0", "MobileNetV3Small"),
    *("DenseNet121", "ConvNeXtTiny", "U-Net", "GPT-2", "Llama", "Gemma"),
    *("BERT", "T5", "ViT"),
)
WORKER = os.path.join(os.path.dirname(__file__), "existing_peaks_worker.py")
ENVIRONMENT = {
    # The process gives back what it frees.
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
}


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument(
        "--network", choices=NETWORKS, action="append", help=help
    )


def main(options):
    console, table = Console(width=120), Table(box=SIMPLE)
    titles = ("kept", "peak", "predicted")
    for title in ("", *titles, *titles, "kept, ratio", "peak, ratio"):
        table.add_column(title, justify="right" if title else "left")
    for network in options.network or NETWORKS:
        row = row_of(network)
        console.print(network, *row)
        table.add_row(network, *row)
    console.print(f"{os.environ.get('KERAS_BACKEND')}: plain, recompute", table)


def row_of(network):
    done = subprocess.run(
        [sys.executable, WORKER, network],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1][:400]]
    ways = json.loads(done.stdout.splitlines()[-1])
    row = []
    for kept, peak, predicted in ways:
        error = f"{predicted / peak - 1:+.1%}"
        row += [_mb(kept), _mb(peak), f"{_mb(predicted)} ({error})"]
    (kept, peak, _), (less_kept, lower_peak, _) = ways
    return [*row, _ratio(kept, less_kept), _ratio(peak, lower_peak)]


def _mb(size):
    return "\u2013" if size is None else f"{size / 1e6:,.1f}"


def _ratio(plain, ours):
    return "\u2013" if plain is None else f"{plain / ours:.1f}"
