import math
from collections import namedtuple

import keras
from keras import ops

from keras_efficient.ops.adam_step import finite_gradient
from keras_efficient.ops.block_top_k import block_top_k
from keras_efficient.ops.quantize_4bit import dequantize_4bit
from keras_efficient.ops.quantize_4bit import quantize_4bit
from keras_efficient.ops.round_to_bfloat16 import round_to_bfloat16
from keras_efficient.ops.uniform_noise import uniform_noise

# shape and dtype, for a tensor of d elements, window m, k entries a block of
# size B, buckets of size Q
MicroAdamState = namedtuple(
    "MicroAdamState",
    (
        "indices",  # (m, ceil(d / B), k), uint8 or int16
        "values",  # (m, ceil(d / B), k), bfloat16 or float32
        "written",  # (m,), int32: the step that wrote the row, 0 for none
        "codes",  # (ceil(d / Q), Q / 2), uint8
        "low",  # (ceil(d / Q), 1), bfloat16
        "high",  # (ceil(d / Q), 1), bfloat16
    ),
)


def micro_adam_step(
    gradient,
    state,
    step,
    block_size=256,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    rounding="stochastic",
    bias_correction="full",
    seed=0,
):
    """Compute one step of MicroAdam for one tensor.

    The gradient plus the error feedback, `a`, is cut into blocks. The k
    largest entries of each go into a window of the last m steps; what is
    left is the new error feedback, in four bits an entry:

    ```
    a = g + dequantize(e)
    I, V = block_top_k(a, k)         e = quantize(a - V at I)
    z1 = sum_r beta_1^age(r) V_r     z2 = sum_r beta_2^age(r) V_r^2
    u = c1 z1 / (sqrt(c2 z2) + epsilon)
    ```

    over the rows r of the window, at the indices of each row, 0 elsewhere.
    `c1` and `c2` correct the bias of the two sums (`bias_correction`):
    `"full"` takes those of Adam, `(1 - beta) / (1 - beta^t)`, as the paper
    does; `"window"` divides by the sum of the weights of the rows.

    Deviations from the paper's Algorithm 1: the age of a row is the number
    of steps since it was written, not its place in the ring, so that it stays
    right when a tensor had no gradient for some steps; the rounding error of
    `V` stays in the error feedback; rounding is stochastic by default, which
    the theory of the paper assumes (to the nearest step, entries smaller
    than half a step are lost); non-finite entries of the gradient count as 0.

    Args:
        gradient: Tensor g of any shape.
        state: `MicroAdamState`, all zeros at first.
        step: Integer tensor t, the number of this step, counted from 1.
        block_size: Integer B. Defaults to `256`.
        beta_1: Float. Defaults to `0.9`.
        beta_2: Float. Defaults to `0.999`.
        epsilon: Float. Defaults to `1e-7`.
        rounding: `"stochastic"` or `"nearest"`, for the error feedback.
            Defaults to `"stochastic"`.
        bias_correction: `"full"` or `"window"`. Defaults to `"full"`.
        seed: Integer, different for each tensor. Defaults to `0`.

    Returns:
        `(u, state)`: the update in float32, of the shape of the gradient,
        and the new state. The caller subtracts `learning_rate * u`.

    Reference:
        - [Modoranu et al., 2024](https://arxiv.org/abs/2405.15593)
    """
    step = ops.cast(step, "int32")
    size = math.prod(gradient.shape)
    blocks, k = state.indices.shape[1:]
    buckets, bucket_size = state.codes.shape[0], 2 * state.codes.shape[1]

    # Error feedback
    e = dequantize_4bit(state.codes, state.low, state.high)
    e = ops.reshape(e, (-1,))[:size]
    a = ops.reshape(finite_gradient(gradient), (-1,)) + e
    a = ops.reshape(_pad(a, blocks * block_size), (blocks, block_size))

    # The largest entries
    new_indices, new_values = block_top_k(a, k)
    if keras.backend.standardize_dtype(state.values.dtype) == "bfloat16":
        new_values = round_to_bfloat16(new_values)
    rest = a - _at_indices(new_indices, new_values, block_size)
    rest = ops.reshape(rest, (-1,))[:size]
    rest = ops.reshape(_pad(rest, buckets * bucket_size), (buckets, -1))
    noise = 0.5
    if rounding == "stochastic":
        noise = uniform_noise((buckets, bucket_size), step, seed)
    codes, low, high = quantize_4bit(rest, noise)

    # The oldest row of the window makes room
    rows = ops.arange(state.written.shape[0])
    oldest = rows == ops.argmin(state.written)
    written = ops.where(oldest, step, state.written)
    oldest = ops.reshape(oldest, (-1, 1, 1))
    new_indices = ops.cast(new_indices, state.indices.dtype)
    new_values = ops.cast(new_values, state.values.dtype)
    indices = ops.where(oldest, new_indices, state.indices)
    values = ops.where(oldest, new_values, state.values)

    # Adam over the window
    age = ops.cast(step - written, "float32")
    weights_1 = ops.where(written > 0, ops.power(beta_1, age), 0.0)
    weights_2 = ops.where(written > 0, ops.power(beta_2, age), 0.0)
    c_1, c_2 = 1 / ops.sum(weights_1), 1 / ops.sum(weights_2)
    if bias_correction == "full":
        t = ops.cast(step, "float32")
        c_1 = (1 - beta_1) / (1 - ops.power(beta_1, t))
        c_2 = (1 - beta_2) / (1 - ops.power(beta_2, t))
    v = ops.cast(values, "float32")
    z_1 = ops.reshape(c_1 * weights_1, (-1, 1, 1)) * v
    z_2 = ops.reshape(c_2 * weights_2, (-1, 1, 1)) * v * v
    z_1 = _at_indices(indices, z_1, block_size)
    z_2 = _at_indices(indices, z_2, block_size)
    u = z_1 / (ops.sqrt(z_2) + epsilon)
    u = ops.reshape(ops.reshape(u, (-1,))[:size], gradient.shape)
    return u, MicroAdamState(indices, values, written, codes, low, high)


def _at_indices(indices, values, block_size):
    """Sum `values`, of shape `(..., blocks, k)`, into their places."""
    blocks = indices.shape[-2]
    first = ops.arange(blocks, dtype="int32")[:, None] * block_size
    places = ops.reshape(ops.cast(indices, "int32") + first, (-1,))
    values = ops.reshape(ops.cast(values, "float32"), (-1,))
    total = ops.segment_sum(values, places, num_segments=blocks * block_size)
    return ops.reshape(total, (blocks, block_size))


def _pad(x, size):
    return ops.pad(x, [[0, size - x.shape[0]]]) if size > x.shape[0] else x
