"""The process of `steps.py` that measures one version."""

import keras
import numpy as np
from keras import layers

import keras_efficient
from keras_efficient.utils import optimizer_state_bytes
from keras_efficient.utils import peak_bytes


def run(case, version, options):
    """Return the peak bytes of a step, and what the optimizer keeps."""
    keras.utils.set_random_seed(0)
    model, optimizer, batches = CASES[case](version, options.scale)
    compiled = options.backend[0] in ("jax", "tensorflow-xla")
    model.compile(optimizer, "mse", jit_compile=compiled)

    def step():
        return [model.train_on_batch(*batch) for batch in batches]

    step()
    # Keras on PyTorch keeps the gradients of a step until the next one.
    gradients = [getattr(v.value, "grad", None) for v in model.variables]
    held = sum(d.nbytes for d in gradients if d is not None)
    del gradients
    peak = held + peak_bytes(step)
    return {
        "peak": peak,
        "state": optimizer_state_bytes(optimizer),
        "parameters": model.count_params(),
        "loss": float(np.mean(step())),
    }


def micro(version, scale):
    """A convolutional network, 64 images a step, 8 parts."""
    size = max(8, int(96 * scale))
    inputs = keras.Input((size, size, 3))
    x = inputs
    for _ in range(6):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(1024, activation="relu")(x)
    x = layers.Dense(1024, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(1)(x))
    steps = 8 if version == "accumulated" else None
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=steps)
    if version == "micro_batches":
        keras_efficient.micro_batches(model, 8)
    x = np.random.default_rng(0).normal(size=(64, size, size, 3))
    return model, optimizer, divided(x, 8 if steps else 1)


def tiled(version, scale):
    """Four feed-forward blocks on 16,384 positions."""
    positions, width = int(16384 * scale), 128
    inputs = keras.Input((positions, width))
    x = inputs
    for i in range(4):
        block = keras.Sequential(
            [
                layers.LayerNormalization(),
                layers.Dense(4 * width, "gelu"),
                layers.Dense(width),
            ],
            name=f"block_{i}",
        )
        if "Tiled" in version:
            block = keras_efficient.layers.Tiled(block, tiles=16)
        x = layers.Add()([x, block(x)])
    model = keras.Model(inputs, layers.Dense(1)(x))
    if "recompute" in version:
        keras_efficient.recompute(model)
    x = np.random.default_rng(0).normal(size=(1, positions, width))
    return model, keras.optimizers.SGD(0.01), divided(x, 1)


def release(version, scale):
    """Dense layers of 50 million parameters."""
    width = int(2048 * scale) // 2 * 2
    if "reversible" in version:
        blocks = [
            keras_efficient.layers.AdditiveCoupling(layers.Dense(width, "tanh"))
            for _ in range(12)
        ]
        run = [keras_efficient.layers.ReversibleSequence(blocks)]
        inputs = keras.Input((2 * width,))
    else:
        run = [layers.Dense(width, "tanh") for _ in range(12)]
        inputs = keras.Input((width,))
    model = keras.Sequential([inputs, *run, layers.Dense(1)])
    norm = 1.0 if version == "global norm" else None
    optimizer = keras.optimizers.SGD(1e-5, global_clipnorm=norm)
    if "released" in version:
        keras_efficient.release_gradients(model)
    x = np.random.default_rng(0).normal(size=(8, inputs.shape[-1]))
    return model, optimizer, divided(x, 1)


def divided(x, n):
    x = x.astype("float32")
    shape = x.shape[:2] if x.ndim == 3 else x.shape[:1]
    y = np.ones((*shape, 1), "float32")
    return list(zip(np.split(x, n), np.split(y, n)))


CASES = {"micro": micro, "tiled": tiled, "release": release}
