"""Rows of layers that compute with a function of their weights."""

import numpy as np
from keras import ops
from keras.layers import BatchNormalization
from keras.layers import Conv1D
from keras.layers import Dense

from keras_efficient import layers
from tests.layers.own.normalization import moments
from tests.layers.own.normalization import moved
from tests.layers.own.normalization import normalized
from tests.layers.own.normalization import of_batch
from tests.layers.own_row import Own
from tests.layers.own_row import normal

X = normal(6, 4)
SEQUENCE = normal(4, 5, 4)
MASK = np.arange(5) < np.array([[5], [3], [2], [4]])


def dense(kernel, w, x):
    return x @ kernel + w["dense/bias"]


def conv(x, kernel):
    """Of three places, the input padded by zeros."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    parts = [padded[:, i : i + x.shape[1]] @ kernel[i] for i in range(3)]
    return sum(parts)


def tanh(w, x, training):
    return dense(np.tanh(w["dense/kernel"]), w, x)


def largest(kernel, n):
    """A mask of the n largest of all inputs of an output."""
    ranks = np.argsort(np.argsort(-np.abs(kernel), axis=0), axis=0)
    return (ranks < n).astype(kernel.dtype)


def mask_decay(w, x, training):
    d = 1 - 0.25 * w["steps"]  # of which there was one, before this one
    mask = largest(w["dense/kernel"], 1)
    return dense(w["dense/kernel"] * (mask + (1 - mask) * d), w, x)


def structure_decay(w, x, training):
    # Frames of 3, 2 and 1: it is in the second.
    return dense(w["dense/kernel"] * largest(w["dense/kernel"], 2), w, x)


def straight_through(w, x, training, fixed=None):
    kernel = w["dense/kernel"]
    if fixed is None:
        return dense(kernel * largest(kernel, 1), w, x)
    old = fixed[0]["dense/kernel"]
    return dense(old * largest(old, 1) + kernel - old, w, x)


def sr_ste(w, x, training, fixed=None):
    y = straight_through(w, x, training, fixed)
    mask = largest(w["dense/kernel"], 1)
    rest = np.sum(((1 - mask) * w["dense/kernel"]) ** 2)
    return (y, 1e-4 * rest) if training else y


def counted(w, x, training):
    return {"steps": w["steps"] + 1} if training else {}


def standardized(w, x, training):
    kernel = w["conv1d/kernel"]
    mean, variance = kernel.mean((0, 1)), kernel.var((0, 1))
    kernel = (kernel - mean) / np.sqrt(variance + 1e-5)
    return conv(x, kernel) + w["conv1d/bias"]


def conv_bn(w, x, training):
    y = conv(x, w["conv1d/kernel"]) + w["conv1d/bias"]
    name = "batch_normalization"
    keys = "moving_mean", "moving_variance", "gamma", "beta"
    mean, variance, gamma, beta = (w[f"{name}/{key}"] for key in keys)
    return normalized(y, (mean, variance), gamma, beta)


def statistics(w, x, training, mask=None):
    old = w["moving_mean"], w["moving_variance"]
    if not training:
        return old
    mean, variance = of_batch(x, mask)
    variance = variance.reshape(4) + (mean.reshape(4) - old[0]) ** 2
    return moved(old[0], mean, 0.9), moved(old[1], variance, 0.9)


def batch_channel(w, x, training, mask=None, fixed=None):
    found = statistics(*(fixed or (w, x)), training, mask)
    y = normalized(x, found, w["gamma"], w["beta"], 1e-5)
    groups = y.reshape(*y.shape[:-1], 2, 2)
    mask = None if mask is None else mask[..., None]
    found = moments(groups, (1, 3), mask)
    gamma, beta = w["group_gamma"][:, None], w["group_beta"][:, None]
    return normalized(groups, found, gamma, beta, 1e-5).reshape(x.shape)


def batch_channel_state(w, x, training, mask=None):
    mean, variance = statistics(w, x, training, mask)
    return {"moving_mean": mean, "moving_variance": variance}


def sparse(rate=0.25, **options):
    return lambda: layers.SparseNM(Dense(4), n=1, m=4, rate=rate, **options)


WEIGHTS = {
    "Reparametrized": Own(
        lambda: layers.Reparametrized(Dense(4), ops.tanh), X, tanh
    ),
    "SparseNM": Own(sparse(), X, mask_decay, state=counted),
    "SparseNM frames": Own(
        sparse(0.5, method="structure_decay"), X, structure_decay, state=counted
    ),
    "SparseNM straight through": Own(
        sparse(method="step", gradient="straight_through"),
        X,
        straight_through,
        surrogate=straight_through,
        state=counted,
    ),
    "SparseNM SR-STE": Own(
        sparse(method="sr_ste"), X, sr_ste, surrogate=sr_ste, state=counted
    ),
    "WeightStandardization": Own(
        lambda: layers.WeightStandardization(Conv1D(4, 3, padding="same")),
        SEQUENCE,
        standardized,
        keeps_mask=False,
    ),
    "ConvBN": Own(
        lambda: layers.ConvBN(
            Conv1D(4, 3, padding="same"), BatchNormalization(), mode="tune"
        ),
        SEQUENCE,
        conv_bn,
        keeps_mask=False,
    ),
    "BatchChannelNormalization": Own(
        lambda: layers.BatchChannelNormalization(2, momentum=0.9),
        SEQUENCE,
        batch_channel,
        surrogate=batch_channel,
        state=batch_channel_state,
        mask=MASK,
    ),
}
