"""Run all guides with few steps, on each backend.

`python tools/check_guides.py` runs everything, each guide in a process and a
folder of its own. `--backend jax` (may be repeated) chooses backends; names,
such as `quickstart`, choose guides. What a guide that fails has printed is
shown, and the exit status is 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

BACKENDS = ("jax", "tensorflow", "torch")
GUIDES = Path(__file__).resolve().parent.parent / "guides"

# What makes each guide short: it has to run through, not to arrive anywhere.
ARGUMENTS = {
    "char_lm": "--epochs 1 --steps 2 --depth 1 --width 16 --samples 1",
    "custom_training_loop": "--epochs 1 --depth 1 --width 8 --batch-size 512",
    "deeper_in_the_same_memory": (
        "--epochs 1 --depth 1 --times 2 --width 4 --batch-size 512"
    ),
    "existing_model": (
        "--parts lora --batch-size 2 --steps 1 --depth 2 --width 16"
    ),
    "fine_tune_gpt2": (
        "--first-steps 1 --steps 2 --depth 2 --width 16 --batch-size 64"
    ),
    "fine_tuning_methods": (
        "--first-steps 1 --steps 2 --depth 2 --width 16 --batch-size 4"
    ),
    "image_translation": "--epochs 1 --seeds 1 --blocks 1 --batch-size 128",
    "invertible_autoencoder": (
        "--epochs 1 --seeds 1 --widths 64-16 --batch-size 512"
    ),
    "large_vocabulary": (
        "--words 50 --depth 2 --width 8 --length 8 --batch-size 2 --steps 1 "
        "--version 16-bit"
    ),
    "learning_rate_without_tuning": "--epochs 1 --seeds 1",
    "measuring_memory": "--depth 1 --width 4 --batch-size 64 --processes 1",
    "normalizing_flow": "--epochs 4 --depth 1",
    "one_billion_parameters": (
        "--size 3M --length 8 --steps 1 --limit 3 --version efficient --files"
    ),
    "quickstart": "--epochs 1 --depth 1 --width 8",
    "segmentation_3d": (
        "--epochs 1 --steps 1 --batch-size 1 --edge 12 --depth 1 --width 4"
    ),
    "switching_backends": "--epochs 1 2 --depth 1 --width 8",
    "several_devices": "--epochs 1 --steps 2 --depth 1 --width 64 --length 4",
    "your_own_reversible_block": "--epochs 1 --depth 1 --width 8",
}

ENVIRONMENT = {
    # Threads that wait for each other spin, on a machine that is busy.
    "OMP_NUM_THREADS": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in less time
}


def run(guide, backend):
    """Return whether a guide ran, its seconds, and what it printed."""
    path = GUIDES / f"{guide}.py"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, path, *ARGUMENTS[guide].split()],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    seconds = time.perf_counter() - start
    return result.returncode == 0, seconds, result.stdout


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Not `choices`: argparse would ask the empty list to be one of them.
    parser.add_argument("guides", nargs="*", help=", ".join(ARGUMENTS))
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    options = parser.parse_args()
    unknown = set(options.guides) - set(ARGUMENTS)
    if unknown:
        parser.error(f"no such guide: {', '.join(sorted(unknown))}")

    backends = options.backend or BACKENDS
    table = Table("guide", *backends, title="seconds")
    failures = []
    for guide in options.guides or sorted(ARGUMENTS):
        cells = []
        for backend in backends:
            print(f"{guide}, {backend}", file=sys.stderr, flush=True)
            passed, seconds, output = run(guide, backend)
            cells.append(f"{seconds:.0f}" if passed else "[red]FAILED[/red]")
            if not passed:
                failures.append((guide, backend, output))
        table.add_row(guide, *cells)
    for guide, backend, output in failures:
        print(f"\n===== {guide}, {backend} =====\n{output}")
    Console().print(table)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
