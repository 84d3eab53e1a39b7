from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from keras_efficient.conversion.arguments import in_words
from keras_efficient.utils.matplotlib_module import matplotlib_module

GIB = 2**30
LARGEST = 10  # layers that are shown one by one
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
        plan: `MemoryPlan` for the budget, or `None`.
    """

    def __init__(self, backend, batch_size, budget, layers, usage, plan=None):
        self.backend = backend
        self.batch_size = batch_size
        self.budget = budget
        self.layers = layers
        self.usage = usage
        self.plan = plan

    def as_dict(self):
        """Return all of it in dictionaries, lists, strings and numbers."""
        return {
            **vars(self),
            "layers": [layer._asdict() for layer in self.layers],
            "usage": {name: x._asdict() for name, x in self.usage.items()},
            "plan": self.plan and self.plan.as_dict(),
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
        unit, factor = _unit(max(x.peak for x in self.usage.values()))
        left = [0.0 for _ in names]
        for part in (*PARTS, "working_memory"):
            # Where a compiler joins activations, fewer are there at the peak.
            sizes = [
                max(0, getattr(usage, part) + min(0, usage.working_memory))
                if part == "activations"
                else max(0, getattr(usage, part))
                for usage in self.usage.values()
            ]
            sizes = [size / factor for size in sizes]
            label = part.replace("_", " ")
            axes.barh(names, sizes, left=left, label=label)
            left = [x + size for x, size in zip(left, sizes)]
        if self.budget:
            budget = self.budget * GIB / factor
            axes.axvline(budget, color="black", ls="--", label="budget")
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit} at the peak, batch of {self.batch_size}")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(to_file)
        return figure

    def __rich__(self):
        end = [""] if self.plan is None else [Text(f"\n{self.plan}")]
        return Group(self._table_of_layers(), "", self._table_of_usage(), *end)

    def _table_of_layers(self):
        parts = [part for part in PARTS if part != "batch"]
        sizes = {
            layer: [getattr(layer, part) for part in parts]
            for layer in sorted(self.layers, key=_size, reverse=True)
            if _size(layer)
        }
        unit, factor = _unit(max(map(_size, self.layers), default=0))
        title = f"{self.backend}, batch of {self.batch_size}: {unit} by layer"
        table = _table(title, "layer", [x.replace("_", " ") for x in parts])
        shown = list(sizes)[:LARGEST]
        for layer in shown:
            table.add_row(layer.name, *_numbers(sizes[layer], factor))
        rest = list(sizes)[LARGEST:]
        if rest:
            sums = [sum(part) for part in zip(*(sizes[x] for x in rest))]
            name = f"the other {len(rest)} layers"
            table.add_row(name, *_numbers(sums, factor))
        return table

    def _table_of_usage(self):
        unit, factor = _unit(max(x.peak for x in self.usage.values()))
        title = f"{unit} of a training step, batch of {self.batch_size}"
        table = _table(title, "", self.usage)
        for part in (*PARTS, "working_memory", "peak"):
            sizes = [getattr(usage, part) for usage in self.usage.values()]
            row = _numbers(sizes, factor)
            table.add_row(part.replace("_", " "), *row)
        if self.budget:
            largest = [usage.largest_batch for usage in self.usage.values()]
            label = f"\nlargest batch in {in_words(self.budget * GIB)}"
            row = [f"\n{size:,}" for size in largest]
            table.add_row(label, *row)
        return table


def _size(layer):
    return sum(layer[1:])


def _table(title, first, columns):
    table = Table(title=title, box=SIMPLE, padding=0, show_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column.replace(" ", "\n"), justify="right")
    return table


def _unit(largest):
    """The name of a unit for sizes up to `largest`, and its bytes."""
    if largest >= 1e10:
        return "GB", 1e9
    return ("MB", 1e6) if largest >= 1e6 else ("KB", 1e3)


def _numbers(sizes, factor):
    return [f"{size / factor:,.1f}" for size in sizes]
