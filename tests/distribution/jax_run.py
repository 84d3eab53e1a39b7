"""Step and train on one device, and divided among eight.

`python jax_run.py FOLDER` writes `steps.npz`, for `read` of `resumed_run.py`:
for each way the variables after some steps, and the shape of what one device
has of them; and `fit.npz`, what came of a training that went on elsewhere.
"""

import contextlib
import functools
import sys
from pathlib import Path

import jax
import keras
import numpy as np

from keras_efficient import config
from keras_efficient import optimizers
from keras_efficient.callbacks import AutoDrop
from keras_efficient.callbacks import BanditLearningRate
from keras_efficient.utils.memory_report import memory_report
from tests.compilers import optimize_less
from tests.optimizers.resumed_run import KillAt
from tests.optimizers.resumed_run import Killed
from tests.optimizers.resumed_run import write

STEPS = 2
# Name of a variable: its shape, and mesh axes under `ModelParallel`.
SHAPES = {
    "columns": ((16, 2048), (None, "model")),
    "rows": ((256, 64), ("model", None)),
    "both": ((16, 2048), ("batch", "model")),
    "heads": ((64, 16, 64), (None, "model", None)),
    "misaligned": ((64, 768), (None, "model")),  # 3 blocks in 4 parts
    "straddling": ((256, 100), ("model", None)),  # blocks straddle rows
    "odd": ((64, 65), ("model", None)),  # the last block is not full
    "bias": ((128,), ("model",)),  # plain
}
# Of which state is divided by the same code.
FEW = ("columns", "rows", "both", "bias")
# Name, dtype: how to make it, in which ways (see `ways`), for what.
OPTIMIZERS = {
    ("MicroAdam", "float32"): (
        optimizers.MicroAdam,
        ("model", "model, zero", "data, zero"),
        tuple(SHAPES),
    ),
    ("Adam8bit", "float32"): (
        optimizers.Adam8bit,
        ("model", "data", "data, zero"),
        tuple(SHAPES),
    ),
    ("Adam8bit", "bfloat16"): (optimizers.Adam8bit, ("model, zero",), FEW),
    ("Lion8bit", "float32"): (optimizers.Lion8bit, ("model, zero",), FEW),
    ("LDAdam", "float32"): (
        functools.partial(optimizers.LDAdam, rank=4),
        ("model",),
        FEW,
    ),
    ("Muon8bit", "float32"): (optimizers.Muon8bit, ("data, zero",), FEW),
}


def mesh():
    devices = keras.distribution.list_devices()
    assert len(devices) == 8
    return keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)


def model_parallel(layouts):
    """Patterns so broad that they match state of any rank, too, by its name."""
    layout_map = keras.distribution.LayoutMap(mesh())
    for name, axes in layouts.items():
        layout_map[f".*{name}.*"] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


def ways():
    """Return distribution and `zero` of each way to do the steps."""
    devices = keras.distribution.list_devices()
    model = model_parallel({name: axes for name, (_, axes) in SHAPES.items()})
    data = keras.distribution.DataParallel(devices=devices)
    return {
        "single": (None, False),
        "model": (model, False),
        "model, zero": (model, True),
        "data": (data, False),
        "data, zero": (data, True),
    }


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_variables(dtype, names):
    return [
        keras.Variable(normal(*SHAPES[name][0], seed=i), dtype=dtype, name=name)
        for i, name in enumerate(names)
    ]


def step(make, distribution, zero, dtype, names):
    """Do some steps as Keras compiles them; return all and their shards."""
    keras.distribution.set_distribution(distribution)
    variables, optimizer = make_variables(dtype, names), make(zero=zero)
    optimizer.build(variables)
    values = [v.value for v in variables]
    state = [v.value for v in optimizer.variables]
    layouts = [x.sharding for x in values], [x.sharding for x in state]
    program = jax.jit(
        optimizer.stateless_apply,
        donate_argnums=(0, 2),
        out_shardings=layouts,
    )
    for i in range(STEPS):
        gradients = [
            jax.device_put(normal(*v.shape, seed=[i, j]), v.value.sharding)
            for j, v in enumerate(variables)
        ]
        values, state = program(state, gradients, values)
    everything = [*values, *state]
    for variable, x in zip(optimizer.variables, state):
        variable.assign(x)
    store = {}
    optimizer.save_own_variables(store)
    return everything, optimizer, store


def results(make, distribution, zero, dtype, names):
    everything, optimizer, store = step(make, distribution, zero, dtype, names)
    names = [*names, *(v.name for v in optimizer.variables)]
    names = [f"{i} {name}" for i, name in enumerate(names)]
    return {
        "values": dict(zip(names, map(_array, everything))),
        "shards": {
            name: x.sharding.shard_shape(x.shape)
            for name, x in zip(names, everything)
        },
        "files": {key: _array(x) for key, x in store.items()},
    }


def _array(x):
    x = np.asarray(x)
    # `np.savez` does not know bfloat16; float32 holds all of its numbers.
    return x.astype("float32") if x.dtype.name == "bfloat16" else x


def write_steps(path):
    found = {}
    for (name, dtype), (make, names, variables) in OPTIMIZERS.items():
        for way in ("single", *names):
            parts = results(make, *ways()[way], dtype, variables)
            for part, arrays in parts.items():
                found[f"{name}, {dtype}, {way}, {part}"] = arrays
    write(path, found)


# Training


def make_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(1024, "tanh", name="wide"),
            keras.layers.Dense(64, name="narrow"),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def fit(folder, distribution, *callbacks, **options):
    """Train; return the model and the losses of its epochs."""
    keras.distribution.set_distribution(distribution)
    model = make_model(optimizers.MicroAdam(1e-3, **options))
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    x, y = normal(64, 64, seed=0), normal(64, 64, seed=1)
    losses = model.fit(
        *(x, y),
        batch_size=16,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, backup],
    ).history["loss"]
    return model, np.array(losses)


def write_fits(path, folder):
    layouts = {"wide/kernel": (None, "model"), "narrow/kernel": ("model", None)}
    model = model_parallel(layouts)
    data = ways()["data"][0]
    found = {"single": {}, "data": {}}
    for name, distribution, options in (
        ("single", None, {}),
        ("data", data, {"zero": True}),
    ):
        drops = AutoDrop(mode="window", window_steps=1, threshold=30)
        bandit = BanditLearningRate([1e-4, 1e-3], steps_per_pull=2)
        _, found[name]["losses"] = fit(
            folder / name, distribution, drops, **options
        )
        found[name]["drops"] = np.array(drops.drop_steps)
        trained, found[name]["bandit losses"] = fit(
            folder / f"{name} bandit", distribution, bandit, **options
        )
        found[name]["pulls"] = np.array(bandit._memory["pulls"])
    report = memory_report(trained, 16, verbose=0)
    bytes_of_state = report.usage["as it is"].optimizer_state
    found["data"]["report"] = np.array(bytes_of_state)
    # Cut in two: begun by eight devices, ended by one, and the other way.
    for name, first, second in (
        ("8 to 1", model, None),
        ("1 to 8", None, model),
    ):
        with contextlib.suppress(Killed):
            fit(folder / name, first, KillAt(epoch=1, batch=3))
        _, losses = fit(folder / name, second)
        found[name] = {"losses": losses}
    whole, losses = fit(folder / "whole", None)
    found["whole"] = {"losses": losses}
    rows = [row for row in config.report(0) if row["device"] == "cpu"]
    keras.distribution.set_distribution(data)
    rows += [row for row in config.report(0) if row["device"] == "cpu"]
    found["reports"] = {
        str(i): np.array(row["reason"]) for i, row in enumerate(rows)
    }
    write(path, found)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    optimize_less(True)
    write_steps(folder / "steps.npz")
    write_fits(folder / "fit.npz", folder)
