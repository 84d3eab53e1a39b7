from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from keras_efficient.utils.matplotlib_module import matplotlib_module

GIB = 2**30
PARTS = ("parameters", "gradients", "optimizer_state", "batch", "activations")


class LayerMemory(NamedTuple):
    """Bytes that a layer takes in a training step.

    Attributes:
        name: String, the names from the model down.
        parameters: All its variables, but those of a layer before it.
        gradients: Of those that are trained.
        optimizer_state: Of the same.
        activations: Kept for the backward pass, of the batch.
    """

    name: str
    parameters: int
    gradients: int
    optimizer_state: int
    activations: int


class MemoryUsage(NamedTuple):
    """Bytes that a model takes in a training step.

    Attributes:
        parameters: All variables of the model.
        gradients: Of those that are trained.
        optimizer_state: Of the same.
        batch: The inputs.
        activations: Kept for the backward pass.
        working_memory: What there is besides at the peak.
        peak: The sum of all these.
        largest_batch: Examples that fit the budget, or `None` without one.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    batch: int
    activations: int
    working_memory: int
    peak: int
    largest_batch: int | None


class MemoryReport:
    """What `memory_report` has found; it prints as two tables.

    Attributes:
        backend: String.
        batch_size: Integer.
        budget: Float, GiB, or `None`.
        layers: List of `LayerMemory`.
        usage: Dict from "as it is" and from each lever to `MemoryUsage`.
    """

    def __init__(self, backend, batch_size, budget, layers, usage):
        self.backend = backend
        self.batch_size = batch_size
        self.budget = budget
        self.layers = layers
        self.usage = usage

    def as_dict(self):
        """Return all of it in dictionaries, lists, strings and numbers."""
        return {
            **vars(self),
            "layers": [layer._asdict() for layer in self.layers],
            "usage": {name: x._asdict() for name, x in self.usage.items()},
        }

    def plot(self, to_file="memory.png"):
        """Draw a bar of stacked parts for each way to train; needs matplotlib.

        Args:
            to_file: String, where to write the picture. Defaults to
                `"memory.png"`.

        Returns:
            The `matplotlib` figure.
        """
        module = matplotlib_module("figure", "MemoryReport.plot")
        figure = module.Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot()
        names = list(self.usage)
        left = [0.0 for _ in names]
        for part in (*PARTS, "working_memory"):
            sizes = [
                max(0, getattr(usage, part)) / GIB
                for usage in self.usage.values()
            ]
            label = part.replace("_", " ")
            axes.barh(names, sizes, left=left, label=label)
            left = [x + size for x, size in zip(left, sizes)]
        if self.budget:
            axes.axvline(self.budget, color="black", linestyle="--")
        axes.invert_yaxis()
        axes.set_xlabel(f"GiB at the peak, batch of {self.batch_size}")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(to_file)
        return figure

    def __rich__(self):
        return Group(self._table_of_layers(), self._table_of_usage())

    def _table_of_layers(self):
        title = f"{self.backend}, batch of {self.batch_size}: MB by layer"
        parts = [part for part in PARTS if part != "batch"]
        table = _table(title, "layer", parts)
        for layer in self.layers:
            if any(layer[1:]):
                sizes = [getattr(layer, part) for part in parts]
                table.add_row(layer.name, *map(_megabytes, sizes))
        return table

    def _table_of_usage(self):
        table = _table("MB of a training step", "", self.usage)
        for part in (*PARTS, "working_memory", "peak"):
            sizes = [getattr(usage, part) for usage in self.usage.values()]
            table.add_row(part.replace("_", " "), *map(_megabytes, sizes))
        if self.budget:
            table.add_section()
            largest = [usage.largest_batch for usage in self.usage.values()]
            label = f"largest batch in {self.budget:g} GiB"
            table.add_row(label, *(f"{size:,}" for size in largest))
        return table


def _table(title, first, columns):
    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    return table


def _megabytes(size):
    return f"{size / 1e6:,.1f}"
