"""Rows of normalization layers, with their equations in NumPy."""

import numpy as np

from keras_efficient import layers
from tests.layers.own_row import Own
from tests.layers.own_row import normal

IMAGE = normal(4, 3, 3, 4)
SEQUENCE = normal(4, 5, 4)
MASK = np.arange(5) < np.array([[5], [3], [2], [4]])
TASKS = np.array([0, 0, 1, 0], "int32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def moments(x, axes, mask):
    """Mean and variance where a mask is true."""
    mask = np.broadcast_to(True if mask is None else mask[..., None], x.shape)
    mean = x.mean(axes, keepdims=True, where=mask)
    return mean, x.var(axes, keepdims=True, where=mask)


def of_batch(x, mask=None):
    return moments(x, tuple(range(x.ndim - 1)), mask)


def of_instance(x, mask=None):
    return moments(x, tuple(range(1, x.ndim - 1)), mask)


def normalized(x, statistics, gamma, beta, epsilon=1e-3):
    mean, variance = statistics
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def evo_norm_s0(w, x, training, mask=None):
    groups = x.reshape(*x.shape[:-1], 2, 2)
    axes = (*range(1, x.ndim - 1), x.ndim)
    mask = None if mask is None else mask[..., None]
    _, variance = moments(groups, axes, mask)
    scale = np.sqrt((variance + 0 * groups).reshape(x.shape) + 1e-5)
    return w["gamma"] * x * sigmoid(w["v"] * x) / scale + w["beta"]


def evo_norm_b0(w, x, training, mask=None):
    _, variance = of_batch(x, mask)
    if not training:
        variance = w["moving_variance"]
    _, instance = of_instance(x, mask)
    below = np.maximum(
        np.sqrt(variance + 1e-3), w["v"] * x + np.sqrt(instance + 1e-3)
    )
    return w["gamma"] * x / below + w["beta"]


def moved(old, new, momentum):
    return momentum * old + (1 - momentum) * new.reshape(old.shape)


def evo_norm_b0_state(w, x, training, mask=None):
    if not training:
        return {}
    _, variance = of_batch(x, mask)
    old = w["moving_variance"]
    return {"moving_variance": moved(old, variance, 0.9)}


def instance_batch(w, x, training, mask=None):
    first, rest = x[..., :1], x[..., 1:]
    of_rest = of_batch(rest, mask)
    if not training:
        of_rest = w["moving_mean"], w["moving_variance"]
    gamma, beta = w["gamma"], w["beta"]
    return np.concatenate(
        [
            normalized(first, of_instance(first, mask), gamma[:1], beta[:1]),
            normalized(rest, of_rest, gamma[1:], beta[1:]),
        ],
        -1,
    )


def instance_batch_state(w, x, training, mask=None):
    if not training:
        return {}
    names = ("moving_mean", "moving_variance")
    return {
        name: moved(w[name], value, 0.99)
        for name, value in zip(names, of_batch(x[..., 1:], mask))
    }


def ada_b2n_statistics(w, x):
    counts = np.array([3, 1])
    p = np.exp(w["phi"][:2]) + counts  # none is of the third task
    weights = (p / p.sum() / counts)[TASKS].reshape(-1, 1, 1, 1) / 9
    mean = (weights * x).sum((0, 1, 2))
    return mean, (weights * (x - mean) ** 2).sum((0, 1, 2))


def ada_b2n(w, x, training):
    moving = w["moving_mean"], w["moving_variance"]
    if not training:
        return normalized(x, moving, w["gamma"], w["beta"])
    found = ada_b2n_statistics(w, x)
    return normalized(x, found, w["gamma"], w["beta"])


def ada_b2n_training(w, x, training, fixed=None):
    """What is trained: the loss pulls towards moving statistics at rest."""
    y = ada_b2n(w, x, training)
    if not training:
        return y
    state = ada_b2n_state(*(fixed or (w, x)), training)
    mean, variance = ada_b2n_statistics(w, x)
    gap = np.mean((mean - state["moving_mean"]) ** 2)
    gap += np.mean((variance - state["moving_variance"]) ** 2)
    return y, 2.0 * gap


def ada_b2n_state(w, x, training):
    if not training:
        return {}
    eta = w["eta"]
    mean, variance = ada_b2n_statistics(w, x)
    return {
        "eta": eta / (eta + 0.9**0.5),
        "moving_mean": w["moving_mean"] * (1 - eta) + eta * mean,
        "moving_variance": w["moving_variance"] * (1 - eta) + eta * variance,
    }


NORMALIZATION = {
    "EvoNorm S0": Own(
        lambda: layers.EvoNorm(groups=2), SEQUENCE, evo_norm_s0, mask=MASK
    ),
    "EvoNorm B0": Own(
        lambda: layers.EvoNorm("B0"),
        SEQUENCE,
        evo_norm_b0,
        state=evo_norm_b0_state,
        mask=MASK,
    ),
    "InstanceBatchNormalization": Own(
        lambda: layers.InstanceBatchNormalization(0.3),
        SEQUENCE,
        instance_batch,
        state=instance_batch_state,
        mask=MASK,
    ),
    "AdaB2N": Own(
        lambda: layers.AdaB2N(3, factor=2.0),
        IMAGE,
        ada_b2n_training,
        surrogate=ada_b2n_training,
        state=ada_b2n_state,
        more=(TASKS,),
        in_run=False,
    ),
}
