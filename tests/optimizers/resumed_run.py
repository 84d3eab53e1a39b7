"""Train for ten steps, in one process or in two.

`python resumed_run.py FOLDER SOURCE...` takes up, on its own backend, the runs
that `start` of another process left in FOLDER, and writes what comes of them to
FOLDER. All `.keras` files are loaded; a run goes on from its file if the name
of its optimizer is a source, or `keras` is, and from what `BackupAndRestore`
kept if `backup` is.
"""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np

from tests.optimizers.table import BACKEND
from tests.optimizers.table import TABLE

STEPS = 5  # before a run is cut in two, and after it
BATCH = 32


class Killed(Exception):
    """What stops a run in the middle."""


class KillAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.is_last = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.is_last and batch == self.batch:
            raise Killed


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Half(keras.layers.Layer):
    """Weights of 16 bits; all else is float32, as the tolerances want it."""

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], 64), dtype="bfloat16", name="kernel"
        )

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def make_model(name, seed=0):
    """Return a model that brings out each kind of state.

    An embedding and two matrices are large enough to be compressed, and one of
    them has 16 bits; the bias and the small matrix are not.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(128, 64, name="embedding")(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(128, "tanh", name="large")(x)
    x = Half(name="half")(x)
    x = keras.layers.Dense(4, use_bias=False, name="small")(x)
    model = keras.Model(inputs, x)
    optimizer = TABLE[name].cls(TABLE[name].rate)
    model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
    return model


def data():
    """Return the batches of one half of a run, which is an epoch of `fit`."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, size=(STEPS * BATCH, 4)).astype("int32")
    return x, rng.normal(size=(STEPS * BATCH, 4)).astype("float32")


def train_on_batches(model):
    """Train for one half; return the losses."""
    batches = zip(*(np.split(part, STEPS) for part in data()), strict=True)
    return [float(model.train_on_batch(x, y)) for x, y in batches]


def fit(model, folder, *callbacks):
    """Train for both halves, or for what a backup in FOLDER leaves of them."""
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    model.fit(
        *data(),
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[backup, *callbacks],
    )


def values(model):
    """Return all that a step reads or writes, as arrays by name."""
    return {
        f"{i} {variable.name}": _to_numpy(variable)
        for i, variable in enumerate(all_variables(model))
    }


def all_variables(model):
    return [*model.variables, *model.optimizer.variables]


def _to_numpy(variable):
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    # `np.savez` does not know bfloat16; float32 holds all of its numbers.
    return value.astype("float32") if variable.dtype == "bfloat16" else value


def start(name, folder):
    """Leave what a run is taken up from; return what it comes to if it is not.

    Returns `half`, the values after five steps, and `whole` and `losses`, the
    values and losses of five more.
    """
    model = make_model(name)
    model.optimizer.build(model.trainable_variables)
    first = [keras.ops.copy(v) for v in all_variables(model)]
    train_on_batches(model)
    model.save(folder / f"{name}.keras")
    half = values(model)
    losses = train_on_batches(model)
    whole = values(model)
    # Back to the first step: another model would have to be compiled.
    for variable, value in zip(all_variables(model), first, strict=True):
        variable.assign(value)
    with contextlib.suppress(Killed):
        fit(model, folder / f"{name}_backup", KillAt(epoch=1, batch=1))
    return {"half": half, "whole": whole, "losses": {"": losses}}


def finish(name, folder, sources):
    """Take up what `start` left; return what comes of it, by source."""
    model = keras.models.load_model(folder / f"{name}.keras")
    # A file of another backend may ask for what takes minutes here.
    model.jit_compile = BACKEND == "jax"
    results = {"half": values(model)}
    if "keras" in sources or name in sources:
        results["losses"] = {"": train_on_batches(model)}
        results["whole"] = values(model)
    if "backup" in sources:
        # Weights of another seed: all that counts comes from the backup.
        model = make_model(name, seed=1)
        fit(model, folder / f"{name}_backup")
        results["backup"] = values(model)
    return results


def write(path, results):
    """Write dictionaries of arrays to a file."""
    flat = {
        f"{part}|{key}": array
        for part, arrays in results.items()
        for key, array in arrays.items()
    }
    np.savez(path, **flat)


def read(path):
    """Return what `write` was given, in another process."""
    results = {}
    for name, array in np.load(path).items():
        part, key = name.split("|")
        results.setdefault(part, {})[key] = array
    return results


def main(folder, *sources):
    for name in TABLE:
        results = finish(name, folder, sources)
        write(folder / f"{name}_{BACKEND}.npz", results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
