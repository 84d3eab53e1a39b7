"""Print the memory that one training step takes at its peak.

`python peak_memory.py DEPTH [DEPTH ...]` prints two lists of MB for each mode
of TensorFlow, an entry a depth: of a reversible model and of its plain twin.
What tracing and compiling take does not count: the step measured is the second
one. Linux only.
"""

import functools
import json
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


def peak(depth, reversible, mode):
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
    x = np.ones((16384, 128), "float32")
    model.train_on_batch(x, x[:, :1])
    step = functools.partial(model.train_on_batch, x, x[:, :1])
    return keras_efficient.utils.peak_bytes(step) / 2**20


if __name__ == "__main__":
    depths = [int(n) for n in sys.argv[1:]]
    peaks = {
        mode: [[peak(n, kind, mode) for n in depths] for kind in (True, False)]
        for mode in ("eager", "graph", "xla")
    }
    print(json.dumps(peaks))
