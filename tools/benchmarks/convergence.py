"""Compare what optimizers reach: loss with its spread, state, time.

Two tasks on real data: `digits`, a convolutional network on scikit-learn's
8 x 8 digits, and `text`, a character-level transformer on the documentation
that ships with Python (`pydoc_data.topics`). Adam, Lion, Adafactor and Muon
are those of Keras.

Every optimizer gets the same grid of learning rates, which fall to 0 as a
cosine over the run. SinkGD runs with
`alpha=1`: its matrices see 0.05 of the rate otherwise. The rate with the lowest
validation loss, mean over the tuning seeds, is run on the other seeds; the
table shows mean and standard deviation over those. "at Adam's" is the
validation loss at Adam's best rate, of the tuning seeds, for those who change
the optimizer and nothing else.
"""

from rich.box import SIMPLE
from rich.table import Table

from benchmarks import comparison

TASKS = ("digits", "text")
OPTIMIZERS = (
    "Adam",
    "Lion",
    "Adafactor",
    "Muon",
    "MicroAdam",
    "Adam8bit",
    "AdamW8bit",
    "Lion8bit",
    "SGD8bit",
    "LDAdam",
    "SinkGD",
)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def add_arguments(parser):
    comparison.add_arguments(parser, TASKS, OPTIMIZERS, tuning_seeds=1)


def main(options):
    return comparison.compare(
        "convergence", options, TASKS, OPTIMIZERS, tabulate
    )


def tabulate(task, runs):
    table = Table(title=task, box=SIMPLE)
    for column in ("", "rate", "training", "validation"):
        table.add_column(column, no_wrap=True)
    for column in ("at Adam's", "B/param", "ms"):
        table.add_column(column, no_wrap=True, justify="right")
    adam = next((run for run in runs if run["optimizer"] == "Adam"), {})
    for run in runs:
        if "error" in run:
            table.add_row(run["optimizer"], *run["error"])
            continue
        at_rate = run["grid"].get(str(adam.get("rate")))
        table.add_row(
            run["optimizer"],
            f"{run['rate']:g}",
            form(run["training"]),
            form(run["validation"]),
            f"{at_rate:.4f}" if at_rate else "",
            f"{run['bytes']:.3f}",
            f"{run['milliseconds']:.1f}",
        )
    return table


def form(error):
    return f"{error['mean']:.4f} ± {error['deviation']:.4f}"
