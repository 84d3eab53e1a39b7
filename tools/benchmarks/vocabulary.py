"""Compare losses of a large vocabulary, with and without whole logits.

Contenders take turns: a plain last layer and loss, as Keras computes them, and
the same by a log-softmax and a gather; `linear_cross_entropy`, which computes
logits again in the backward pass; the loss of `chunk_loss`, whose gradients are
computed with it; on PyTorch `torch.nn.functional.linear_cross_entropy`, with
its default options, summed and as the loss of each token. Bytes are the peak of
loss and gradients, those included: what XLA plans on JAX, what the process
takes elsewhere. Seconds are those of the CPU, on a GPU of the clock.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.process import run_worker

MODES = ("jax", "tensorflow-xla", "torch")


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--words", type=int, default=32768)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk-size", type=int, help="tokens at a time")
    parser.add_argument("--dtype", default="float32", help="of the operands")
    help = "timed runs of each contender, of which the median is taken"
    parser.add_argument("--steps", type=int, default=5, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def main(options):
    if options.worker:
        from benchmarks.vocabulary_worker import run

        Path(options.worker).write_text(json.dumps(run(options)))
        return 0
    console = Console()
    words = [
        word
        for name in ("tokens", "words", "width", "dtype", "steps", "chunk_size")
        if getattr(options, name) is not None
        for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]
    results = {}
    for mode in options.backend or MODES:
        results[mode] = run_worker("vocabulary", mode, options.device, words)
        console.print(tabulate(mode, options, results[mode]))
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")
    return int(any("error" in result for result in results.values()))


def tabulate(mode, options, result):
    title = (
        f"{mode}: {options.tokens} tokens, {options.words} words, width "
        f"{options.width}, {options.dtype}"
    )
    if "error" in result:
        return f"{title}: {result['error']}"
    table = Table("", "peak MiB", "of plain", "s", "over plain", title=title)
    plain = result["plain"]
    for name, found in result.items():
        table.add_row(
            name,
            f"{found['peak'] / 2**20:.0f}",
            f"{found['peak'] / plain['peak']:.3f}",
            f"{found['seconds']:.3f}",
            f"{found['ratio']:.2f}",
        )
    return table
