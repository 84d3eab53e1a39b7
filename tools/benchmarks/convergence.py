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
the optimizer and nothing else. Other settings of an optimizer run when they are
asked for by name, `--optimizer MicroAdam:no-window`.

`--weights bfloat16` compares weights of 16 bits instead, rounded in each way,
with float32 ones in a model that computes in 16 bits, too: training loss at
each rate, how far the weights go at the smallest one and the correlation to
where they go in float32, bytes of weights and state a parameter, and the time
of a training step.
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
    "Muon8bit",
    "AdamW",
    "MicroAdam",
    "Adam8bit",
    "AdamW8bit",
    "Lion8bit",
    "SGD8bit",
    "LDAdam",
    "SinkGD",
)
# What was chosen between, by the name of the class and of the choice.
SETTINGS = {
    "MicroAdam:no-window": {"density": 0.0},
    "MicroAdam:paper": {
        "alpha": 0.0,
        "bias_correction": "full",
        "rounding": "nearest",
    },
    "LDAdam:nearest": {"rounding": "nearest"},
    "LDAdam:no-feedback": {"error_feedback": "off"},
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
WEIGHT_RATES = (2e-5, 1e-3, 1e-2)
WEIGHTS = ("float32", "bfloat16", "float16")


def add_arguments(parser):
    names = *OPTIMIZERS, *SETTINGS
    comparison.add_arguments(parser, TASKS, names, tuning_seeds=1)
    help = "dtype of the weights; defaults to float32"
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="float32", help=help
    )


def main(options):
    is_float32 = options.weights == "float32"
    return comparison.compare(
        "convergence",
        options,
        TASKS,
        OPTIMIZERS,
        tabulate if is_float32 else tabulate_weights,
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


def tabulate_weights(task, runs):
    table = Table(title=task, box=SIMPLE)
    for column in ("", "weights", *(f"{rate:g}" for rate in WEIGHT_RATES)):
        table.add_column(column, no_wrap=True)
    for column in ("distance", "correlation", "B/param", "ms"):
        table.add_column(column, no_wrap=True, justify="right")
    for run in runs:
        if "error" in run:
            table.add_row(run["optimizer"], *run["error"])
            continue
        for weights in ("float32", "compensated", "stochastic", "nearest"):
            part = run[weights]
            rates = list(part["rates"].values())
            table.add_row(
                run["optimizer"],
                weights,
                *(form(rate["loss"]) for rate in rates),
                f"{rates[0]['distance']:.3f}",
                f"{rates[0]['correlation']:.3f}",
                f"{part['bytes']:.2f}",
                f"{1e3 * rates[0]['step']:.1f}",
            )
    return table


def form(error):
    return f"{error['mean']:.4f} ± {error['deviation']:.4f}"
