"""Fine-tune backbones of KerasHub after `to_reversible`, by momentum.

A small backbone of each family is trained on one part of Python's help texts,
converted, and fine-tuned on another part (the image backbone on the digits of
scikit-learn, then on the digits upside down), on the backend of
`KERAS_BACKEND`. BERT predicts masked characters.

"G" is by how much errors of the reconstruction may grow over all layers: the
momentum is `G ** (-1 / layers)`. "A to B" moves it from the one to the other
over the first half of the fine-tuning, by `callbacks.MomentumSchedule`.

- KL: divergence of the converted from the plain predictions, nats;
- loss: held-out nats after fine-tuning; "plain" is the plain network;
- gradient: largest error of the gradient of a layer relative to the plain
  twin (`utils.check_reversibility`), before and after fine-tuning.

Figures are means over the seeds.
"""

import contextlib
import io

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

FAMILIES = ("GPT-2", "Llama", "BERT", "ViT")
WAYS = (
    *((10, 10), (1e3, 1e3), (1e5, 1e5)),
    *((1e5, 1e3), (1e5, 10), (1e3, 10)),
)


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument(
        "--family", choices=FAMILIES, action="append", help=help
    )
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--fine-steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)


def main(options):
    console = Console()
    for family in options.family or FAMILIES:
        rows = [measure(family, seed, options) for seed in range(options.seeds)]
        table = Table(title=f"{family}, {options.depth} layers", box=SIMPLE)
        for title in ("G", "KL", "loss", "gradient", "afterwards"):
            table.add_column(title, justify="right" if title != "G" else "left")
        for name in rows[0]:
            kl, loss, *errors = np.mean([row[name] for row in rows], 0)
            words = [f"{x:.0e}" for x in errors] if name != "plain" else []
            table.add_row(name, f"{kl:.4f}", f"{loss:.4f}", *words)
        console.print(table)


def measure(family, seed, options):
    """Return `(KL, loss, error of the gradient, the same afterwards)`."""
    import keras

    from benchmarks.to_reversible_tasks import Task
    from keras_efficient.callbacks import MomentumSchedule
    from keras_efficient.models import hub
    from keras_efficient.utils import check_reversibility

    task = Task(family, options.depth, seed)
    task.train(task.model, task.before, options.steps, 2e-3)
    weights = task.model.get_weights()
    plain = task.predict(task.model)
    task.train(task.model, task.tuning, options.fine_steps, 3e-4)
    found = {"plain": (0.0, task.loss(task.predict(task.model)), 0.0, 0.0)}
    converted = hub.to_reversible(task.backbone)
    run = converted.get_layer("transformer_layers")
    model = task.with_head(converted)
    before = keras.Model(model.input, run.input)

    def error():
        streams = before.predict(task.few, verbose=0)
        with contextlib.redirect_stdout(io.StringIO()):
            return max(check_reversibility(run, streams).gradient)

    for start, end in WAYS:
        task.model.set_weights(weights)
        first, last = (g ** (-1 / options.depth) for g in (start, end))
        for block in run.blocks:
            block.momentum.assign(first)
        q = task.predict(model)
        kl = np.mean(np.sum(np.exp(plain) * (plain - q), -1))
        at_first = error()
        schedule = MomentumSchedule(first, last, options.fine_steps // 2)
        task.train(model, task.tuning, options.fine_steps, 3e-4, [schedule])
        name = f"{start:g}" if start == end else f"{start:g} to {end:g}"
        found[name] = kl, task.loss(task.predict(model)), at_first, error()
    return found
