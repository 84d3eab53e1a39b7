"""Compare learning rate schedules: those to be tuned, and those that are not.

Three tasks on real data: `digits`, a convolutional network on scikit-learn's
8 x 8 digits, moved by up to a pixel in training; `measurements`, an MLP that
predicts ten measurements of a tumour from twenty others (scikit-learn's breast
cancer data); `text`, a character-level transformer on the documentation that
ships with Python.

For each task and optimizer a grid chooses the initial learning rate, with
drops to a tenth after 1/2 and 3/4 of the run; all schedules start from that
one, but "constant", which gets the best constant rate of the grid, and the
bandit, which gets candidates from 1e-4 to 0.3. Further grids choose the drops
(when, how far) of the step schedule and the factor and patience of
`ReduceLROnPlateau`. AutoDrop has one setting for all tasks and optimizers.
Grids are run on the tuning seeds, what they choose on the others: the table
shows mean and standard deviation of the final validation loss over those.
"""

from rich.box import SIMPLE
from rich.table import Table

from benchmarks import comparison

TASKS = ("digits", "measurements", "text")
OPTIMIZERS = ("SGD", "Adam")
AUTO, TUNED, PLATEAU = "AutoDrop auto", "step, tuned", "plateau, defaults"


def add_arguments(parser):
    comparison.add_arguments(parser, TASKS, OPTIMIZERS, tuning_seeds=2)


def main(options):
    return comparison.compare("schedules", options, TASKS, OPTIMIZERS, tabulate)


def tabulate(task, results):
    """One row a schedule, one column an optimizer."""
    table = Table(title=f"{task}: final validation loss", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(result["optimizer"], no_wrap=True)
    whole = [result for result in results if "error" not in result]
    for name in whole[0]["runs"] if whole else ():
        cells = (result.get("runs", {}).get(name) for result in results)
        table.add_row(name, *map(form, cells))
    table.add_section()
    for label, key in (
        ("initial rate", "rate"),
        ("chosen drops: factor, when", "step"),
        ("chosen plateau: factor, patience", "plateau"),
    ):
        cells = [show(result.get(key)) for result in results]
        table.add_row(label, *cells)
    table.add_row("auto no worse than tuned step", *map(matches, results))
    table.add_row("auto better than plateau", *map(beats, results))
    return table


def form(cell):
    return f"{cell['mean']:.4f} ± {cell['deviation']:.4f}" if cell else "error"


def show(value):
    values = value if isinstance(value, list) else [value]
    return ", ".join("" if v is None else f"{v:.3g}" for v in values)


def matches(result):
    """Whether AutoDrop is within a standard deviation of what was tuned."""
    if "error" in result:
        return "".join(result["error"])
    auto, tuned = result["runs"][AUTO], result["runs"][TUNED]
    bound = tuned["mean"] + tuned["deviation"]
    return "yes" if auto["mean"] <= bound else "NO"


def beats(result):
    if "error" in result:
        return ""
    auto, plateau = result["runs"][AUTO], result["runs"][PLATEAU]
    return "yes" if auto["mean"] < plateau["mean"] else "NO"
