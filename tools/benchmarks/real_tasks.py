"""Small tasks on real data that comes with Python and scikit-learn.

A task is `((x, y), (x_held_out, y_held_out))` and a function that builds a
model of logits for it.
"""

import pydoc_data.topics

import keras
import numpy as np
from keras import layers
from keras import ops

import keras_efficient
from benchmarks.convergence import SETTINGS

CONTEXT = 32  # characters
OPTIONS = {
    # Its matrices see 0.05 of the rate otherwise.
    "SinkGD": {"alpha": 1.0},
    # With Keras' 1e-30, squares of entries without a gradient are 0 / 0 in
    # float32.
    "Adafactor": {"epsilon_1": 1e-12},
}
BATCH = 32


def split(x, y):
    from sklearn.model_selection import train_test_split

    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=y
    )
    return (x, y), (x_test, y_test)


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return split((x / 16).astype("float32").reshape(-1, 8, 8, 1), y)


def build_digits(width=32):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, padding="same", activation="relu"),
            layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(2 * width, activation="relu"),
            layers.Dense(10),
        ]
    )


def measurements():
    """The ten largest measurements of a tumour, from its twenty others."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x = load_breast_cancer().data
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    x, x_test = train_test_split(x, test_size=0.25, random_state=0)
    return (x[:, :20], x[:, 20:]), (x_test[:, :20], x_test[:, 20:])


def build_measurements(width=32):
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(width, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(width, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(10),
        ]
    )


def text(context=CONTEXT):
    topics = pydoc_data.topics.topics
    characters = "".join(topics[key] for key in sorted(topics))
    codes = np.frombuffer(
        characters.encode("ascii", errors="replace"), dtype="uint8"
    )
    # The alphabet, in order of appearance in the code table.
    codes = np.unique(codes, return_inverse=True)[1].astype("int32")
    windows = np.lib.stride_tricks.sliding_window_view(codes, context + 1)
    # The last tenth is held out; every 32nd window of it is enough.
    border = len(codes) * 9 // 10
    train, test = windows[: border - context], windows[border::32]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:])


def build_text(width=64, depth=2, heads=4):
    inputs = keras.Input((CONTEXT,), dtype="int32")
    x = layers.Embedding(128, width)(inputs)
    places = ops.ones_like(inputs) * ops.arange(CONTEXT)
    x = x + layers.Embedding(CONTEXT, width)(places)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(heads, width // heads)(
            y, y, use_causal_mask=True
        )
        x = x + y
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    return keras.Model(
        inputs, layers.Dense(128)(layers.LayerNormalization()(x))
    )


def make_optimizer(name, **options):
    ours = keras_efficient.optimizers
    cls, _, _ = name.partition(":")
    module = ours if hasattr(ours, cls) else keras.optimizers
    options = {**OPTIONS.get(cls, {}), **SETTINGS.get(name, {}), **options}
    return getattr(module, cls)(**options)
