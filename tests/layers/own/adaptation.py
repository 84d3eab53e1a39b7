"""Rows of layers that adapt, retrieve and mix, with equations in NumPy."""

import math

import numpy as np
from keras.layers import Conv2D
from keras.layers import Dense

from keras_efficient import layers
from tests.layers.own.normalization import moved
from tests.layers.own.normalization import normalized
from tests.layers.own.normalization import of_batch
from tests.layers.own_row import Own
from tests.layers.own_row import normal

X = normal(4, 4)
SEQUENCE = normal(4, 5, 4)
IMAGE = normal(4, 4, 4, 4)
SETTINGS = np.random.default_rng(3).uniform(size=(4, 2)).astype("float32")
MASK = np.arange(5) < np.array([[5], [3], [2], [4]])


def dense(w, name, x):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def softmax(x):
    y = np.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


def gelu(x):
    erf = np.vectorize(math.erf)
    return x * (1 + erf(x / np.sqrt(2))) / 2


def layer_norm(w, name, x, epsilon=1e-3):
    each = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return normalized(x, each, w[f"{name}/gamma"], w[f"{name}/beta"], epsilon)


def hydra(w, x, training):
    z = dense(w, "dense", x)
    y = z
    for name, seen in (("parallel", x), ("sequential", z)):
        hidden = dense(w, f"{name}_down", seen)
        y = y + 0.5 * dense(w, f"{name}_up", hidden)
    return y


def convolve(x, kernel, strides=1):
    """Convolve pictures, "same" for windows of 3 and sizes that divide."""
    before = 1 if strides == 1 else 0
    padded = np.pad(x, [(0, 0), (before, 1), (before, 1), (0, 0)])
    rows, columns = x.shape[1:3]
    return sum(
        padded[:, i : i + rows : strides, j : j + columns : strides]
        @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def eco_tta(w, x, training, fixed=None):
    source = convolve(x, w["conv2d/kernel"]) + w["conv2d/bias"]
    change = convolve(x, w["conv/kernel"])
    parts = []
    for name, value in (("norm", source), ("conv_norm", change)):
        statistics = of_batch(value)
        if not training:
            moving = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
            statistics = moving
        gamma, beta = w[f"{name}/gamma"], w[f"{name}/beta"]
        parts.append(normalized(value, statistics, gamma, beta))
    y = parts[0] + np.maximum(parts[1], 0)
    if not training:
        return y
    if fixed is not None:
        w, x = fixed
        source = convolve(x, w["conv2d/kernel"]) + w["conv2d/bias"]
    return y, 0.5 * np.mean(np.abs(y - source))


def eco_tta_state(w, x, training):
    if not training:
        return {}
    source = convolve(x, w["conv2d/kernel"]) + w["conv2d/bias"]
    change = convolve(x, w["conv/kernel"])
    state = {}
    for name, value in (("norm", source), ("conv_norm", change)):
        for kind, new in zip(("mean", "variance"), of_batch(value)):
            key = f"{name}/moving_{kind}"
            state[key] = moved(w[key], new, 0.9)
    return state


def hyper_network(w, x, training):
    angle = SETTINGS * np.pi / 2
    hidden = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    hidden = dense(w, "hidden", hidden)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    kernel = w["dense/kernel"] + (hidden @ w["kernel_change"]).reshape(4, 4, 3)
    bias = w["dense/bias"] + hidden @ w["bias_change"]
    return np.tanh(np.einsum("bi,bio->bo", x, kernel) + bias)


def key_value(w, x, training, fixed=None):
    seen = x if fixed is None else fixed[1]
    outputs = []
    for book in range(2):
        points = seen @ w["projection"][book]
        keys = w["keys"][book]
        distance = ((points[..., None, :] - keys) ** 2).sum(-1)
        outputs.append(w["values"][3 * book + distance.argmin(-1)])
    return np.mean(outputs, 0)


def hopfield(w, x, training, mask=None, stored=None, prefix=""):
    stored = x if stored is None else stored
    stored = layer_norm(w, f"{prefix}stored_norm", stored)
    state = dense(w, f"{prefix}query", layer_norm(w, f"{prefix}state_norm", x))
    key = dense(w, f"{prefix}key", stored)
    value = dense(w, f"{prefix}value", stored)
    heads = []
    for i in (slice(0, 3), slice(3, 6)):
        xi, k, v = state[..., i], key[..., i], value[..., i]
        for what in (k, v):  # two steps
            scores = 0.7 * xi @ k.swapaxes(1, 2)
            if mask is not None:
                scores = np.where(mask[:, None], scores, -1e9)
            xi = softmax(scores) @ what
        heads.append(xi)
    return dense(w, f"{prefix}projection", np.concatenate(heads, -1))


def hopfield_pooling(w, x, training, mask=None):
    queries = np.broadcast_to(w["queries"], (len(x), *w["queries"].shape[1:]))
    y = hopfield(w, queries, training, mask, x, "hopfield/")
    return y.reshape(len(x), -1)


def hopfield_layer(w, x, training):
    return hopfield(w, x, training, None, w["patterns"])


def random_features(w, x, training):
    """By the matrices that the layer draws, entry by entry."""
    layer = layers.CompactRandomFeatures(4, degree=3, expansion=3)
    layer.build(x.shape)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    z = np.ones((*x.shape[:-1], 12))
    for signs in layer.signs:
        z[..., : signs.shape[1]] *= x @ signs
    z *= np.sqrt(2**3 / 12)
    hadamard = np.ones((1, 1))
    while len(hadamard) < 16:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    padded = np.pad(z, [(0, 0)] * (x.ndim - 1) + [(0, 4)]) * layer.flips
    return (padded @ hadamard)[..., layer.rows] / 2.0


def pooling_mixer(w, x, training):
    y = gelu(x @ w["widen/kernel"][0, 0] + w["widen/bias"])
    padded = np.pad(
        y, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf
    )
    rows, columns = x.shape[1:3]
    y = np.max(
        [
            padded[:, i : i + rows, j : j + columns]
            for i in range(3)
            for j in range(3)
        ],
        0,
    )
    return gelu(y) @ w["narrow/kernel"][0, 0] + w["narrow/bias"]


def hourglass(w, x, training):
    hidden = np.tanh(dense(w, "narrow", layer_norm(w, "norm", x, 1e-5)))
    return x + dense(w, "widen", hidden)


ADAPTATION = {
    "Hydra": Own(
        lambda: layers.Hydra(Dense(4), rank=2, scale=0.5), SEQUENCE, hydra
    ),
    "EcoTTABlock": Own(
        lambda: layers.EcoTTABlock(Conv2D(4, 3, padding="same")),
        IMAGE,
        eco_tta,
        surrogate=eco_tta,
        state=eco_tta_state,
    ),
    "HyperNetwork": Own(
        lambda: layers.HyperNetwork(Dense(3, "tanh"), (5,)),
        X,
        hyper_network,
        more=(SETTINGS,),
        in_run=False,
    ),
    "KeyValueBottleneck": Own(
        lambda: layers.KeyValueBottleneck(2, 3, 4, 2),
        SEQUENCE,
        key_value,
        surrogate=key_value,
    ),
    "Hopfield": Own(
        lambda: layers.Hopfield(2, 3, scaling=0.7, update_steps=2),
        SEQUENCE,
        hopfield,
        mask=MASK,
    ),
    "HopfieldLayer": Own(
        lambda: layers.HopfieldLayer(2, 3, 6, 0.7, 2), SEQUENCE, hopfield_layer
    ),
    "HopfieldPooling": Own(
        lambda: layers.HopfieldPooling(2, 3, 2, 0.7, 2),
        SEQUENCE,
        hopfield_pooling,
        mask=MASK,
        keeps_mask=False,
        in_run=False,
    ),
    "CompactRandomFeatures": Own(
        lambda: layers.CompactRandomFeatures(4, degree=3, expansion=3),
        SEQUENCE,
        random_features,
    ),
    "PoolingMixer": Own(layers.PoolingMixer, IMAGE, pooling_mixer),
    "HourglassBlock": Own(
        lambda: layers.HourglassBlock(2, "tanh"), SEQUENCE, hourglass
    ),
}
