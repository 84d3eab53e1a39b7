"""Find the deepest and the largest networks that train in a budget of bytes.

A transformer on characters (Python's help texts) and a convolutional network
that removes noise from photographs, on each backend:

- plain: layers of Keras, and Keras' Adam;
- keras.remat: the same, each block under `keras.remat`, where it works;
- Recompute: the same, under `keras_efficient.layers.Recompute`;
- reversible: the same functions in `keras_efficient.layers.ReversibleSequence`;
- reversible, MicroAdam: that, with `keras_efficient.optimizers.MicroAdam`;
- PyTorch: the same network without Keras, under `torch.utils.checkpoint`, with
  the optimizer `AdamW8bit` of torchao (CPU) or bitsandbytes (GPU).

"deepest" grows the depth (blocks of two residual functions) at a fixed width,
"largest" the width at a fixed depth, until a training step takes more than the
budget. Search ends at `--limit` times the depth or parameters of the plain
network, where the table says "or more". Then all contenders, each in a process
of its own and at the size found, take turns: a step each a round.

"MB" is what a step took: parameters and optimizer state, and what the process
held at its peak above what it held before the step (on a GPU, the device).
Compilers and frameworks themselves do not count. Bytes are measured in other
processes than times, because an allocator that gives back at once what is
freed, as that needs, makes a step take up to twice as long. "ms" is the median
over rounds, "a parameter" the ratio to the plain network of the time a step
and parameter, also a median over rounds. "loss" is that of the last round.

The batch grows with the budget, so that plain networks come out about as deep
at any budget; a small budget takes less time for a table much like it.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
from pathlib import Path
from unittest import mock

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end_figure import draw
from benchmarks.reversible import MODES

NETWORKS = {  # smallest depth and width, and the steps that they grow in
    "transformer": {"depth": (4, 1), "width": (128, 32)},
    "convolutional": {"depth": (4, 1), "width": (16, 8)},
}
GOALS = {"deepest": "depth", "largest": "width"}
CONTENDERS = (
    "plain",
    "keras.remat",
    "Recompute",
    "reversible",
    "reversible, MicroAdam",
    "PyTorch",
)
EXAMPLES_A_GIB = 64
# So that what is freed goes back to the system, and the peak is one.
FOR_PEAKS = {
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",  # its own keeps all it had once
}


def add_arguments(parser):
    help = "may be repeated; defaults to jax, tensorflow and torch"
    parser.add_argument("--backend", choices=MODES, action="append", help=help)
    help = "may be repeated; defaults to all"
    for name, choices in (
        ("network", NETWORKS),
        ("goal", GOALS),
        ("contender", CONTENDERS),
    ):
        parser.add_argument(
            f"--{name}", choices=choices, action="append", help=help
        )
    help = "in GiB; defaults to 2, and to 8 on a GPU"
    parser.add_argument("--budget", type=float, help=help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help = "examples; defaults to 64 for each GiB"
    parser.add_argument("--batch-size", type=int, help=help)
    help = "where to stop growing, as a multiple of the plain network"
    parser.add_argument("--limit", type=float, default=6, help=help)
    help = "rounds of training steps"
    parser.add_argument("--steps", type=int, default=10, help=help)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--figure", help="PNG file to draw (needs Matplotlib)")


def main(options):
    console = Console()
    gib = options.budget or {"cpu": 2, "cuda": 8}[options.device]
    options.budget = round(gib * 2**30)
    options.batch_size = options.batch_size or round(EXAMPLES_A_GIB * gib) or 1
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.device == "cpu":
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"})
    found = []
    for mode in options.backend or ("jax", "tensorflow", "torch"):
        os.environ["KERAS_BACKEND"] = mode.partition("-")[0]
        for network in options.network or NETWORKS:
            for goal in options.goal or GOALS:
                rows = compare(console, mode, network, goal, options)
                for row in rows:
                    if "fails" in row:
                        console.print(f"{row['contender']}: {row['fails']}")
                console.print(tabulate(mode, network, goal, rows))
                found += rows
                if options.output:
                    text = json.dumps(found, indent=1) + "\n"
                    Path(options.output).write_text(text)
    if options.figure:
        draw(found, options.figure)
    ours = [row for row in found if row["contender"] in CONTENDERS[2:5]]
    return int(any("fails" in row for row in ours))


def compare(console, mode, network, goal, options):
    """Return the rows of a table."""
    rows, limit = [], None
    for contender in options.contender or CONTENDERS:
        if contender == "PyTorch" and mode != "torch":
            continue
        console.print(f"{mode}, {network}, {goal}: {contender} ...")
        row = {"backend": mode, "network": network, "goal": goal}
        row["contender"] = contender
        rows.append(row)
        try:
            limit = grow(row, limit, options)
        except RuntimeError as error:
            row["fails"] = str(error)
    take_turns([row for row in rows if "fails" not in row], options)
    return rows


def grow(row, limit, options):
    """Add to a row the largest size that fits, its parameters and its peak.

    Returns:
        Integer, where the search of later contenders is to stop.
    """
    sizes, grown = NETWORKS[row["network"]], GOALS[row["goal"]]
    smallest = {name: first for name, (first, _) in sizes.items()}
    start, step = sizes[grown]
    measured = {}
    with worker(row, options.batch_size, FOR_PEAKS) as ask:

        def peak_at(value):
            size = smallest | {grown: value}
            parameters = ask((size["depth"], size["width"]))
            measured[value] = {"parameters": parameters, "peak": ask("peak")}
            return measured[value]["peak"]

        value = largest(peak_at, start, step, options.budget, limit)
    row |= smallest | {grown: value} | measured[value]
    row["at limit"] = value == limit
    # Parameters grow with the square of the width.
    factor = options.limit ** (1 if grown == "depth" else 0.5)
    return limit or int(value * factor) // step * step


def largest(peak_at, start, step, budget, limit):
    """Return the largest value, a multiple of `step`, that fits the budget.

    A parabola through the last values says which to try next.
    """
    if limit and peak_at(limit) <= budget:
        return limit
    peaks = {value: peak_at(value) for value in (start, start + 2 * step)}
    while True:
        fits = [value for value in peaks if peaks[value] <= budget]
        too_large = min(set(peaks) - set(fits), default=None)
        if not fits:
            raise RuntimeError(
                f"{peaks[start]:,} bytes at the smallest size, {start}"
            )
        best = max(fits)
        if too_large is not None and too_large - best <= step:
            return best
        guess = _guess(peaks, budget) // step * step
        highest = best * 4 if too_large is None else too_large - step
        guess = min(max(guess, best + step), highest)
        peaks[guess] = peak_at(guess)


def _guess(peaks, budget):
    values = sorted(peaks)[-3:]
    degree = min(2, len(values) - 1)
    curve = np.polynomial.Polynomial.fit(
        values, [peaks[value] for value in values], degree
    )
    roots = [
        root.real
        for root in (curve - budget).roots()
        if abs(root.imag) < 1e-6 and root.real > values[0]
    ]
    return int(min(roots, default=2 * values[-1]))


@contextlib.contextmanager
def worker(row, batch_size, environment={}):
    """Start a process; yield a function that sends a message and waits."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = row["backend"], row["network"], row["contender"], batch_size
    process = context.Process(target=_serve, args=(theirs, *arguments))
    with mock.patch.dict(os.environ, environment):
        process.start()
    theirs.close()

    def ask(message):
        try:
            ours.send(message)
            answer = ours.recv()
        except (EOFError, BrokenPipeError):
            process.join()
            answer = f"the process ended with exit code {process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    try:
        yield ask
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _serve(*arguments):
    # Here, so that this process does not load Keras.
    from benchmarks.end_to_end_worker import serve

    serve(*arguments)


def take_turns(rows, options):
    """Add times and losses to the rows."""
    with contextlib.ExitStack() as stack:
        asks = []
        for row in rows:
            asks.append(stack.enter_context(worker(row, options.batch_size)))
            asks[-1]((row["depth"], row["width"]))
        for _ in range(options.steps):
            for row, ask in zip(rows, asks):
                row.setdefault("steps", []).append(ask("time"))
    for row in rows:
        seconds, losses = zip(*row["steps"])
        row["ms"] = 1000 * statistics.median(seconds)
        row["loss"] = losses[-1]
        pairs = zip(row["steps"], rows[0]["steps"])
        size = row["parameters"] / rows[0]["parameters"]
        row["a parameter"] = statistics.median(
            ours[0] / its[0] / size for ours, its in pairs
        )


def tabulate(mode, network, goal, rows):
    title = f"{mode}, {network}: the {goal} that trains"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("contender")
    for name in ("depth", "width", "parameters", "MB", "ms", "a parameter"):
        table.add_column(name, justify="right")
    table.add_column("loss", justify="right")
    for row in rows:
        if "fails" in row:
            table.add_row(row["contender"], "fails")
            continue
        more = " or more" if row["at limit"] else ""
        table.add_row(
            row["contender"],
            f"{row['depth']}{more if goal == 'deepest' else ''}",
            f"{row['width']}{more if goal == 'largest' else ''}",
            f"{row['parameters']:,}",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['ms']:.0f}",
            f"{row['a parameter']:.2f}",
            f"{row['loss']:.3g}",
        )
    return table
