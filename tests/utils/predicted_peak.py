"""Print the peak that `memory_report` predicts, and that of the process."""

import functools
import json

import keras
import numpy as np
from keras import layers

import keras_efficient
from keras_efficient.utils import memory_report
from keras_efficient.utils import peak_bytes


def dense():
    model = keras.Sequential([keras.Input((256,))])
    for _ in range(6):
        model.add(layers.Dense(256, "gelu"))
        model.add(layers.LayerNormalization())
        model.add(layers.Dropout(0.1))
    model.add(layers.Dense(8))
    return model, (4096, 256)


def wide():
    model = keras.Sequential([keras.Input((1024,))])
    for _ in range(6):
        model.add(layers.Dense(1024, "relu"))
    model.add(layers.Dense(8))
    return model, (64, 1024)


def convolutions():
    x = inputs = keras.Input((32, 32, 16))
    for _ in range(4):
        y = layers.Conv2D(16, 3, padding="same")(x)
        y = layers.BatchNormalization()(y)
        x = layers.Add()([x, layers.ReLU()(y)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(8)(x)), (128, 32, 32, 16)


def reversible():
    blocks = [
        keras_efficient.layers.AdditiveCoupling(
            keras.Sequential([layers.Dense(256, "gelu"), layers.Dense(128)])
        )
        for _ in range(8)
    ]
    run = keras_efficient.layers.ReversibleSequence(blocks)
    inputs = keras.Input((256,))
    return keras.Model(inputs, layers.Dense(8)(run(inputs))), (8192, 256)


def measure(build):
    model, shape = build()
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 8))
    x, y = x.astype("float32"), y.astype("float32")
    usage = memory_report(model, x, verbose=0).usage["as it is"]
    step = functools.partial(model.train_on_batch, x, y)
    step()
    step()
    if keras.config.backend() == "torch":
        model.zero_grad()  # those of the last step count in this one
    held = usage.parameters + usage.optimizer_state
    return usage.peak, held + peak_bytes(step)


if __name__ == "__main__":
    peaks = {
        build.__name__: measure(build)
        for build in (dense, wide, convolutions, reversible)
    }
    print(json.dumps(peaks))
