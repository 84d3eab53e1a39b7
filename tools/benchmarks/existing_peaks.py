"""Peaks of steps of networks that exist, plainly and recomputed.

Each network takes two steps in a process of its own, compiled as `fit` does on
the backend of `KERAS_BACKEND`; "peak" is how much the process grows in the
second one (`utils.peak_bytes`), "predicted" what `memory_plan` expects of it,
from measurements of the plain step.
"""

import os
import subprocess
import sys

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

NETWORKS = (
    *("residual CNN", "ResNet50", "EfficientNetV2B0", "MobileNetV3Small"),
    *("DenseNet121", "ConvNeXtTiny", "U-Net", "GPT-2", "Llama", "Gemma"),
    *("BERT", "ViT"),
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
    console, table = Console(), Table(box=SIMPLE)
    for title in (
        *("", "peak", "predicted", "recompute", "predicted"),
        "ratio",
    ):
        table.add_column(title, justify="right" if title else "left")
    for network in options.network or NETWORKS:
        plain, ours = (measure(network, way) for way in ("plain", "recompute"))
        row = [f"{x / 1e6:,.1f}" for x in (*plain[:2], *ours[:2])]
        row.append(f"{plain[0] / ours[0]:.1f}")
        console.print(network, *row)
        table.add_row(network, *row)
    console.print(table)


def measure(network, way):
    """Return the peak, and the prediction."""
    done = subprocess.run(
        [sys.executable, WORKER, network, way],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [float(x) for x in done.stdout.split()[-2:]]
