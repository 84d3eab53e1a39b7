"""Train networks of published sizes: bytes of the device, tokens a second.

GPT-2 (124 and 774 million parameters, sequences of 1024 tokens) and RevCol-Tiny
(images of 224 x 224), in mixed precision of bfloat16, on a batch of random
numbers:

- plain: activations stored;
- Recompute: the blocks in `keras_efficient.layers.Recompute` (not RevCol);
- reversible: the same functions in a reversible run;

each with AdamW (PyTorch's fused one on PyTorch, Keras' elsewhere), Adam8bit and
MicroAdam.

"peak" is what a step takes of the device: "held", which is parameters and
optimizer state, and what comes on top, activations and gradients. On JAX it is
the most that the device has lent to the process, so there each contender gets
a process of its own. "a second" are tokens or images, by the median step.
"""

import argparse
import json
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.process import run_worker
from benchmarks.reversible import MODES

NETWORKS = {  # variants
    "gpt2-124m": ("plain", "Recompute", "reversible"),
    "gpt2-774m": ("plain", "Recompute", "reversible"),
    "revcol-tiny": ("plain", "reversible"),
    "gpt2-trial": ("plain", "Recompute", "reversible"),
    "revcol-trial": ("plain", "reversible"),
}
OPTIMIZERS = ("AdamW", "Adam8bit", "MicroAdam")


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    help = "may be repeated; defaults to all but the trials"
    parser.add_argument(
        "--network", choices=NETWORKS, action="append", help=help
    )
    help = 'such as "reversible, MicroAdam"; may be repeated; defaults to all'
    parser.add_argument("--contender", action="append", help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help = "defaults to 8 sequences or 64 images"
    parser.add_argument("--batch-size", type=int, help=help)
    help = "timed steps, after 3 that are not"
    parser.add_argument("--steps", type=int, default=8, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    modes = options.backend or MODES
    networks = options.network or [n for n in NETWORKS if "trial" not in n]
    if options.worker:
        from benchmarks import published_worker

        published_worker.run(modes[0], networks[0], options)
        return 0
    console = Console()
    runs = []
    for mode in modes:
        for network in networks:
            console.print(f"Measuring {mode}, {network} ...")
            run = {"backend": mode, "network": network, "rows": []}
            runs.append(run)
            for row in measure(mode, network, options):
                run["rows"].append(row)
                if options.output:
                    text = json.dumps(runs, indent=1) + "\n"
                    Path(options.output).write_text(text)
            console.print(tabulate(run))
    return int(any("fails" in row for run in runs for row in run["rows"]))


def contenders(network):
    return [
        f"{variant}, {optimizer}"
        for variant in NETWORKS[network]
        for optimizer in OPTIMIZERS
    ]


def measure(mode, network, options):
    """Yield a dictionary for each contender.

    A process goes on from one to the next; where one fails, which may leave
    nothing of the device to use, another process goes on with what is left.
    """
    left = options.contender or contenders(network)
    words = ["--network", network, "--steps", str(options.steps)]
    if options.batch_size:
        words += ["--batch-size", str(options.batch_size)]
    while left:
        asked = left[:1] if mode == "jax" else left
        names = [word for name in asked for word in ("--contender", name)]
        found = run_worker("published", mode, options.device, words + names)
        rows = found.get("rows", [])
        if not rows or ("error" in found and len(rows) < len(asked)):
            reason = found.get("error", "no answer")
            rows.append({"contender": asked[len(rows)], "fails": reason})
        yield from rows
        left = left[len(rows) :]


def tabulate(run):
    title = f"{run['backend']}, {run['network']}"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("contender")
    for column in ("peak MB", "held MB", "ms/step", "a second", "loss"):
        table.add_column(column, justify="right")
    for row in run["rows"]:
        if "fails" in row:
            table.add_row(row["contender"], "fails:", row["fails"])
            continue
        table.add_row(
            row["contender"],
            f"{row['peak bytes'] / 1e6:,.0f}",
            f"{row['held bytes'] / 1e6:,.0f}",
            f"{row['ms']:.1f}",
            f"{row['a second']:,.0f}",
            f"{row['losses'][-1]:.3f}",
        )
    return table
