"""Rows of layers with straight-through gradients, and reversed ones."""

import keras
import numpy as np
from keras import ops
from keras.layers import Conv1D
from keras.layers import Dense

from keras_efficient import layers
from tests.layers.own_row import Own
from tests.layers.own_row import normal

X = normal(6, 4)
SEQUENCE = normal(4, 5, 4)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
def spread(shape, dtype=None):
    """Weights on both sides of 0, near to it and far away."""
    values = [-2.0, -1.2, -0.5, -0.28, -0.31, 0.4, 0.9, 1.6, -0.25]
    return ops.convert_to_tensor(np.resize(values, shape), dtype)


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def ste(w, x, training, fixed=None):
    kernel = w["dense/kernel"]
    signs = sign(kernel)
    if fixed is not None:
        old = fixed[0]["dense/kernel"]
        signs = sign(old) + np.clip(kernel, -1, 1) - np.clip(old, -1, 1)
    return x @ (np.abs(kernel).mean() * signs) + w["dense/bias"]


def root(kernel):
    """ReSTE at the second of four steps."""
    o = 1 + 2 * (1 - np.cos(np.pi / 8))
    size = np.abs(kernel)
    y = sign(kernel) * np.clip(size, 0.1, 1.5) ** (1 / o)
    return np.where(size <= 0.1, 0.1 ** (1 / o) / 0.1 * kernel, y)


def reste(w, x, training, fixed=None):
    kernel = w["dense/kernel"]
    signs = sign(kernel)
    if fixed is not None:
        old = fixed[0]["dense/kernel"]
        signs = sign(old) + root(kernel) - root(old)
    scale = np.abs(kernel).mean(0, keepdims=True)
    return x @ (scale * signs) + w["dense/bias"]


def biper(w, x, training, fixed=None):
    kernel = w["conv1d/kernel"]
    sine = np.sin(20 * kernel)
    signs = sign(sine)
    if fixed is not None:
        old = np.sin(20 * fixed[0]["conv1d/kernel"])
        signs = sign(old) + sine - old
    kernel = w["scale"] * signs
    padded = np.pad(x, [(0, 0), (1, 1), (0, 0)])
    y = sum(padded[:, i : i + 5] @ kernel[i] for i in range(3))
    return y + w["conv1d/bias"]


def counted(w, x, training):
    return {"step": w["step"] + 1} if training else {}


def reversal(w, x, training, fixed=None):
    if fixed is None:
        return x
    return -0.5 * (2 / (1 + np.exp(-10 * 1 / 4)) - 1) * x


BINARY = {
    "Binarized ste": Own(
        lambda: layers.Binarized(Dense(4, kernel_initializer=spread), "ste"),
        X,
        ste,
        surrogate=ste,
    ),
    "Binarized reste": Own(
        lambda: layers.Binarized(
            Dense(4, kernel_initializer=spread), scale="filter", steps=4
        ),
        X,
        reste,
        surrogate=reste,
        state=counted,
    ),
    "Binarized biper": Own(
        lambda: layers.Binarized(
            Conv1D(4, 3, padding="same"), "biper", steps=1
        ),
        SEQUENCE,
        biper,
        surrogate=biper,
        state=counted,
        keeps_mask=False,  # as Conv1D itself
    ),
    "GradientReversal": Own(
        lambda: layers.GradientReversal(0.5, ramp_steps=4),
        SEQUENCE,
        reversal,
        surrogate=reversal,
        state=counted,
    ),
}
