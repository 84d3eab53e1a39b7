"""Print the peak memory of a process that trains deeper and deeper models.

`python peak_memory.py reversible|plain eager|graph|xla BATCH DEPTH [DEPTH ...]`
prints a list of MB, one entry a depth. Depths have to go up, so that each
peak belongs to the depth trained last.
"""

import json
import resource
import sys

import keras
import numpy as np
from keras import layers

import keras_efficient


def function():
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(64, activation="gelu"),
            layers.Dropout(0.1),
        ]
    )


def peak(depth, reversible, mode, batch):
    run = keras_efficient.layers.ReversibleSequence(
        [
            keras_efficient.layers.AdditiveCoupling(function())
            for _ in range(depth)
        ],
        reversible=reversible,
    )
    inputs = keras.Input((128,))
    model = keras.Model(inputs, layers.Dense(1)(run(inputs)))
    model.compile(
        "sgd",
        "mse",
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )
    x = np.ones((batch, 128), "float32")
    model.train_on_batch(x, x[:, :1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    kind, mode, *numbers = sys.argv[1:]
    batch, *depths = map(int, numbers)
    peaks = [peak(n, kind == "reversible", mode, batch) for n in depths]
    print(json.dumps(peaks))
