import json
import statistics
import time

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.optimizers import MicroAdam
from keras_efficient.utils import optimizer_state_bytes
from keras_efficient.utils import saved_activation_bytes

WAYS = {
    "plain, Adam": (False, keras.optimizers.Adam),
    "reversible, Adam": (True, keras.optimizers.Adam),
    "reversible, MicroAdam": (True, MicroAdam),
}


def bench(options):
    """Train one network in three ways that take turns, and print a table."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(options.batch_size, options.width)).astype("float32")
    models = {name: _build(options, *way) for name, way in WAYS.items()}
    console = Console(stderr=True)
    for model in track(models.values(), "Compiling", console=console):
        model.train_on_batch(x, x)
    seconds = {name: [] for name in models}
    for _ in track(range(options.steps), "Measuring", console=console):
        for name, model in models.items():
            start = time.perf_counter()
            float(model.train_on_batch(x, x))
            seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "bytes kept": saved_activation_bytes(model, x),
            "bytes of optimizer state": optimizer_state_bytes(model.optimizer),
            "seconds a step": statistics.median(seconds[name]),
        }
        for name, model in models.items()
    }
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("", *rows["plain, Adam"], title=keras.config.backend())
    for name, row in rows.items():
        kept, state, second = row.values()
        table.add_row(name, f"{kept:,}", f"{state:,}", f"{second:.4f}")
    Console().print(table)
    return 0


def _build(options, reversible, optimizer):
    keras.utils.set_random_seed(0)
    half = max(1, options.width // 2)

    def function():
        return keras.Sequential(
            [layers.Dense(2 * half, "gelu"), layers.Dense(half)]
        )

    blocks = [
        AdditiveCoupling(function(), function()) for _ in range(options.depth)
    ]
    inputs = keras.Input((options.width,))
    x = ReversibleSequence(blocks, reversible)(layers.Dense(2 * half)(inputs))
    model = keras.Model(inputs, layers.Dense(options.width)(x))
    model.compile(optimizer(1e-4), "mse")
    return model
