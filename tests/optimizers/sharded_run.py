"""Train on one device, under `DataParallel` and under `ModelParallel`.

`python sharded_run.py FOLDER` writes a file for each optimizer, for `read` of
`resumed_run.py`: the variables after training in each of these ways, on how
many devices they are, and the shape of what one has of them.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_efficient.optimizers import LDAdam
from tests.optimizers.resumed_run import all_variables
from tests.optimizers.resumed_run import values
from tests.optimizers.resumed_run import write
from tests.optimizers.table import TABLE

STEPS = 4
BATCH = 32

OPTIMIZERS = {
    **{name: row.cls(row.rate) for name, row in TABLE.items()},
    # state of the shape of a parameter, where the default has none
    "LDAdam, full": LDAdam(5e-3, error_feedback="full"),
}


def distributions():
    devices = keras.distribution.list_devices()
    assert len(devices) == 8
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    # So broad that they match state of any rank, too, by its name.
    layouts[".*embeddings.*"] = (None, "model")
    layouts[".*wide.*kernel.*"] = (None, "model")
    layouts[".*(tall|odd).*kernel.*"] = ("model", None)
    layouts[".*wide.*bias.*"] = ("model",)
    return {
        "single": None,
        "data": keras.distribution.DataParallel(devices=devices),
        "model": keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch"
        ),
    }


def make_model(name):
    keras.utils.set_random_seed(0)
    x = keras.Input((64,))
    ids = keras.Input((4,), dtype="int32")
    embedded = keras.layers.Embedding(128, 64, name="embedding")(ids)
    outputs = [
        keras.layers.GlobalAveragePooling1D()(embedded),
        keras.layers.Dense(128, name="wide")(x),
        keras.layers.Dense(128, use_bias=False, name="tall")(x),
        # In rows of 65 entries, groups of 32 run over the flattened kernel.
        keras.layers.Dense(65, use_bias=False, name="odd")(x),
    ]
    model = keras.Model([x, ids], keras.layers.Concatenate()(outputs))
    optimizer = OPTIMIZERS[name]
    model.compile(optimizer.from_config(optimizer.get_config()), weighted_sum)
    return model


def weighted_sum(weights, outputs):
    """A loss whose gradients are exact, in whatever order they are summed.

    Weights and inputs are multiples of 1/64 and less than 4.
    """
    return keras.ops.sum(weights * outputs, axis=-1)


def train(model):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x, weights = (
            np.round(64 * rng.normal(size=(BATCH, size)).clip(-3, 3)) / 64
            for size in (64, model.output.shape[-1])
        )
        ids = rng.integers(0, 128, size=(BATCH, 4))
        model.train_on_batch([x, ids], weights)


def shards(model):
    """Return on how many devices, and in which shape, the variables are."""
    named = zip(values(model), all_variables(model), strict=True)
    return {name: _shard(variable.value) for name, variable in named}


def _shard(array):
    sharding = array.sharding
    return [len(sharding.device_set), *sharding.shard_shape(array.shape)]


def main(folder):
    for name in OPTIMIZERS:
        results = {}
        for kind, distribution in distributions().items():
            keras.distribution.set_distribution(distribution)
            model = make_model(name)
            train(model)
            results[kind] = values(model)
            results[f"{kind} shards"] = shards(model)
        write(folder / f"{name}.npz", results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
