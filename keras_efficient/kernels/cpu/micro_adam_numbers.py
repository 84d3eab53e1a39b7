"""What blocks of MicroAdam need to know of a step, before the first one."""

from collections import namedtuple

import numpy as np

from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.jit import jit

_F = np.float32
_ZERO = _F(0)

# half: bytes of a bucket; row: of the window, for this step; noise: see
#   `noise_key`.
Layout = namedtuple("Layout", ("block_size", "half", "row", "noise"))

# bias: of the velocity; c_1, c_2: what the sums over the
#   window are divided by; total: sum of the weights that count as second
#   moments; b_2, d_2, epsilon, alpha, keep: beta_2, 1 - beta_2, ..., 1 - alpha;
# fused: whether codes are computed with fused multiply-adds.
Numbers = namedtuple(
    "Numbers",
    (
        "bias",
        "c_1",
        "c_2",
        "total",
        "b_2",
        "d_2",
        "epsilon",
        "alpha",
        "keep",
        "fused",
    ),
)


@jit
def noise_key(step, seed, is_stochastic):
    """Return what `fill_noise` takes."""
    if not is_stochastic:
        return np.int64(-1)
    return np.int64(mix(np.uint32(step) + mix(np.uint32(seed))))


# Not within a kernel: Numba would wake all threads for each of these sums.
@jit
def write_row(written, step, constants):
    """Give the oldest row to this step.

    Returns:
        The row; beta_1^age and beta_2^age of each row, 0 for those not
        written; and the sum of either.
    """
    row = np.argmin(written)
    written[row] = step
    weights = np.zeros((2, written.size), _F)
    for j in range(written.size):
        if written[j] > 0:
            age = np.float64(step - written[j])
            weights[0, j] = _F(np.float64(constants[0]) ** age)
            weights[1, j] = _F(np.float64(constants[2]) ** age)
    return row, weights, (np.sum(weights[0]), np.sum(weights[1]))


@jit
def gather(
    momentum_bias,
    velocity_bias,
    constants,
    sums,
    is_window,
    fused,
):
    """Return the `Numbers` of a step; `sums` are those of `write_row`."""
    _, d_1, b_2, d_2, epsilon, alpha, keep = constants
    c_1, c_2, total = sums[0], sums[1], sums[1]
    if not is_window:
        c_1, c_2, total = momentum_bias / d_1, velocity_bias / d_2, _ZERO
    return Numbers(
        bias=velocity_bias,
        c_1=c_1,
        c_2=c_2,
        total=total,
        b_2=b_2,
        d_2=d_2,
        epsilon=epsilon,
        alpha=alpha,
        keep=keep,
        fused=fused,
    )
