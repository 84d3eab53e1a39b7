"""Rows of heads, of layers with a loss of their own, of elastic ones."""

import numpy as np

from keras_efficient import layers
from tests.layers.own_row import Own
from tests.layers.own_row import normal

X = normal(6, 4)
SEQUENCE = normal(4, 5, 4)
MASK = np.arange(5) < np.array([[5], [3], [1], [4]])
H = normal(6, 2, seed=3)
EMBEDDINGS = normal(3, 4, seed=4)
IMAGES = normal(2, 4, 4, 2)


def shannon_state(w, x, training, mask=None):
    if not training:
        return {}
    p1 = 1 / (1 + np.exp(-x))
    p = np.stack([1 - p1, p1])
    counts = np.ones(x.shape[:2]) if mask is None else mask
    weight = (counts / counts.sum())[None, :, :, None]
    probability = 0.6 * w["probability"] + 0.4 * (p * weight).sum((1, 2))
    share = (p * x * weight).sum((1, 2)) / probability
    return {"probability": probability, "mean": 0.6 * w["mean"] + 0.4 * share}


def shannon(w, x, training, mask=None, fixed=None):
    if not training:
        return x
    old = (w, x) if fixed is None else fixed
    mean = shannon_state(*old, training, mask)["mean"]
    p1 = 1 / (1 + np.exp(-x))
    p = np.stack([1 - p1, p1])
    counts = np.ones(x.shape[:2]) if mask is None else mask
    weight = (counts / counts.sum())[None, :, :, None]
    spread = p * (x - mean[:, None, None]) ** 2
    return x, 0.5 * (spread * weight).sum()


def fixed_head(w, x, training):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ w["kernel"] / norm / 0.5


def elastic_dense(w, x, training):
    return np.tanh(x @ w["kernel"] + w["bias"])


def elastic_conv(w, x, training):
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = sum(
        padded[:, i : i + 4, j : j + 4] @ w["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )
    return y + w["bias"]


def self_tuning(w, x, training):
    gate = H @ w["kernel_gate"]
    y = w["scale"] * (x @ w["kernel"]) + gate * (x @ w["response_kernel"])
    y = y + w["scale"] * w["bias"] + (H @ w["bias_gate"]) * w["response_bias"]
    if not training:
        return y
    kernels = (w["scale"] * w["kernel"])[None] + gate[:, None] * w[
        "response_kernel"
    ]
    penalty = np.exp(H[:, 1]) * (kernels**2).sum((1, 2))
    return y, penalty.mean()


HEADS = {
    "ShannonDecay": Own(
        lambda: layers.ShannonDecay(0.5, momentum=0.6),
        SEQUENCE,
        shannon,
        surrogate=shannon,
        state=shannon_state,
        mask=MASK,
    ),
    "FixedClassifier": Own(
        lambda: layers.FixedClassifier(3, EMBEDDINGS, temperature=0.5),
        X,
        fixed_head,
        in_run=False,
    ),
    "ElasticDense": Own(
        lambda: layers.ElasticDense(4, "tanh"), X, elastic_dense
    ),
    "ElasticConv2D": Own(
        lambda: layers.ElasticConv2D(2, (3, 1)),
        IMAGES,
        elastic_conv,
        untrained=("transform",),  # the largest kernel is the active one
    ),
    "SelfTuningDense": Own(
        lambda: layers.SelfTuningDense(3, decay=1),
        X,
        self_tuning,
        more=(H,),
        in_run=False,
    ),
    # At rates of zero; tests/models/self_tuning_test.py has others.
    "SelfTuningDropout": Own(
        lambda: layers.SelfTuningDropout(1),
        X,
        lambda w, x, training: x,
        more=(H - 100,),
        in_run=False,
    ),
}
