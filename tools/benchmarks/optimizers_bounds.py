"""What `optimizers.py` is meant to show, beside what it has shown."""

from rich.box import SIMPLE
from rich.table import Table

KERAS_ADAM = "Keras Adam"
FUSED = "torch.optim.AdamW fused"
EXTRA = 0.01  # of the bytes of the parameters

# contender, reference, (backend, device), most that the ratio may be
BOUNDS = (
    ("MicroAdam", KERAS_ADAM, ("torch", "cpu"), 0.3),
    ("MicroAdam", KERAS_ADAM, ("jax", "cpu"), 0.7),
    ("MicroAdam", KERAS_ADAM, ("tensorflow", "cpu"), 1.0),
    ("MicroAdam", KERAS_ADAM, ("tensorflow-xla", "cpu"), 2.0),
    ("Adam8bit", KERAS_ADAM, ("torch", "cpu"), 0.15),
    ("Adam8bit", KERAS_ADAM, ("jax", "cpu"), 0.4),
    ("Adam8bit", KERAS_ADAM, ("tensorflow", "cpu"), 0.5),
    ("Adam8bit", KERAS_ADAM, ("tensorflow-xla", "cpu"), 1.0),
    ("Adam8bit", FUSED, ("torch", "cpu"), 1.5),
    ("MicroAdam", FUSED, ("torch", "cuda"), 1.0),
    ("Adam8bit", FUSED, ("torch", "cuda"), 1.0),
    # Without a kernel, compiled by XLA.
    ("MicroAdam", KERAS_ADAM, ("jax", "cuda"), 2.0),
    ("Adam8bit", KERAS_ADAM, ("jax", "cuda"), 2.0),
)


def tabulate_bounds(runs):
    """Return a table with a row for each bound that these runs can show."""
    table = Table(title="Must show", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("what")
    table.add_column("where")
    table.add_column("at most", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("")
    for run in runs:
        for what, bound, value in found(run):
            where = f"{run['backend']} {run['device']}, {run['workload']}"
            verdict = "holds" if value <= bound else "missed"
            table.add_row(what, where, f"{bound:g}", f"{value:.3g}", verdict)
    return table


def found(run):
    """Yield what is bounded, its bound and its value."""
    rows = {
        name: row
        for name, row in run.get("contenders", {}).items()
        if "fails" not in row
    }
    place = run["backend"], run["device"]
    for name, reference, where, bound in BOUNDS:
        if where == place and name in rows and reference in rows:
            ratio = rows[name]["ratios"][reference]
            yield f"{name} / {reference}", bound, ratio
    for name in ("MicroAdam", "Adam8bit"):
        if rows.get(name, {}).get("extra bytes") is not None:
            extra = rows[name]["extra bytes"] / run["parameter bytes"]
            yield f"{name}: extra bytes / parameters", EXTRA, extra
