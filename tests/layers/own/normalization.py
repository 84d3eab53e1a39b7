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


def alpha_bn(w, x, training, mask=None):
    mean, variance = of_batch(x, mask)
    mixed = (
        0.7 * w["source_mean"] + 0.3 * mean,
        0.7 * w["source_variance"] + 0.3 * variance,
    )
    return normalized(x, mixed, w["gamma"], w["beta"])


def responsibilities(w, x, mask=None):
    """Of three components for each example."""
    m, c = of_instance(x, mask)[0], w["means"]
    norms = np.linalg.norm(m, axis=-1, keepdims=True) * np.linalg.norm(
        c, axis=-1
    )
    exp = np.exp((m @ c.T) / norms / 0.07)
    return (exp / exp.sum(-1, keepdims=True)).swapaxes(1, 2)


def unmix_tns(w, x, training, mask=None, fixed=None):
    p = responsibilities(*(fixed or (w, x)), mask)
    mean, variance = of_instance(x, mask)
    means = (1 - p) * w["means"] + p * mean
    variances = (1 - p) * w["variances"] + p * variance
    center = means.mean(1, keepdims=True)
    total = (variances + means**2).mean(1, keepdims=True) - center**2
    return normalized(x, (center, total), w["gamma"], w["beta"])


def unmix_tns_state(w, x, training, mask=None):
    p = responsibilities(w, x, mask)
    rate = 1 - 0.9 ** (4 / 8)
    return {
        name: w[name] + rate * (p * (value - w[name])).mean(0)
        for name, value in zip(("means", "variances"), of_instance(x, mask))
    }


def p_rep_bn(w, x, training, mask=None):
    batch = of_batch(x, mask)
    if not training:
        batch = w["batch_norm/moving_mean"], w["batch_norm/moving_variance"]
    gamma, beta = w["batch_norm/gamma"], w["batch_norm/beta"]
    y = normalized(x, batch, gamma, beta, 1e-5) + w["a"] * x
    if not training:
        return y
    each = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    gamma, beta = w["layer_norm/gamma"], w["layer_norm/beta"]
    part = (4 + 1 - 1) / 5  # the second of five steps
    return part * normalized(x, each, gamma, beta, 1e-5) + (1 - part) * y


def p_rep_bn_state(w, x, training, mask=None):
    if not training:
        return {}
    names = ("batch_norm/moving_mean", "batch_norm/moving_variance")
    return {"step": 2} | {
        name: moved(w[name], value, 0.9)
        for name, value in zip(names, of_batch(x, mask))
    }


def depthwise(x, kernel):
    """Convolve a grid with a window of odd size, "same"."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
    rows, columns = x.shape[1:3]
    return sum(
        padded[:, i : i + rows, j : j + columns] * kernel[i, j, :, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def linear_attention(w, x, training, mask=None):
    def dense(name, x):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    q = np.maximum(dense("query", x), 0)
    k = np.maximum(dense("key", x) + w["positions"], 0)
    v = dense("value", x)
    if mask is not None:
        k, v = k * mask[..., None], v * mask[..., None]
    heads = []
    for i in (slice(0, 2), slice(2, 4)):
        scores = q[..., i] @ k[..., i].swapaxes(1, 2)  # the quadratic form
        y = scores @ v[..., i] / (scores.sum(-1, keepdims=True) + 1e-6)
        grid = v[..., i].reshape(-1, 1, 5, 2)
        grid = depthwise(grid, w["depthwise/kernel"]) + w["depthwise/bias"]
        heads.append(y + grid.reshape(y.shape))
    return dense("projection", np.concatenate(heads, -1))


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
    "AlphaBN": Own(lambda: layers.AlphaBN(0.3), SEQUENCE, alpha_bn, mask=MASK),
    "UnMixTNS": Own(
        lambda: layers.UnMixTNS(3, max_batch_size=8),
        SEQUENCE,
        unmix_tns,
        surrogate=unmix_tns,
        state=unmix_tns_state,
        mask=MASK,
    ),
    "PRepBN": Own(
        lambda: layers.PRepBN(5),
        SEQUENCE,
        p_rep_bn,
        state=p_rep_bn_state,
        mask=MASK,
    ),
    "SimplifiedLinearAttention": Own(
        lambda: layers.SimplifiedLinearAttention(2, (1, 5), 3),
        SEQUENCE,
        linear_attention,
        mask=MASK,
    ),
}
