"""One step of MicroAdam, and where it differs from the paper.

- `alpha`: with the paper's 0, an entry waits in the error feedback until it is
  among the largest of its block, 85 steps on average, and then moves by about
  as much however much it has gathered. Short trainings do not catch up with
  Adam. With `alpha`, the rest moves at once, by the second moment of its block,
  and the error feedback is its momentum. The authors' package has an `alpha`
  since August 2024, too (ISTA-DASLab-Optimizers, `micro_adam.py`), with another
  meaning: it adds `alpha e` to the update as it is, not divided by a second
  moment, so that its size is that of a gradient.
- No window at all, `k = 0`: the second moments of blocks and the momentum in
  four bits are then the whole optimizer.
- Blocks of 256 by default, where the paper has as many as fit a GPU's shared
  memory: an index takes one byte, and state is smallest.
- `bias_correction`: the paper divides what 10 steps hold by what a thousand
  would: entries that are always selected move 6.5 times as far as with Adam.
  `"window"` moves them as far, so that Adam's learning rate is right.
- The age of a row is the number of steps since it was written, not its place
  in the ring, so that it stays right when a tensor had no gradient for some
  steps.
- The rounding error of the values stays in the rest.
- The last block of a tensor, which may be short, gives k entries as all others
  do, where the paper takes 1 % of it: of a 70 x 70 matrix 3 of the last 36.
- The bounds of a bucket are 1/256 beyond its least and its largest entry, so
  that rounding them to bfloat16 leaves none outside.
- Rounding is stochastic by default, which the theory of the paper assumes: to
  the nearest step, entries smaller than half a step are lost.
- Entries of the gradient that are not finite count as 0.

`guides/benchmarks.md` has the trials of `alpha` and of the size of blocks.
"""

import keras
from keras import ops

from keras_efficient.ops.adam_step import finite_gradient
from keras_efficient.ops.adam_step import one_minus_power
from keras_efficient.ops.block_top_k import block_top_k
from keras_efficient.ops.joined_blocks import JoinedBlocks
from keras_efficient.ops.joined_blocks import at_indices
from keras_efficient.ops.joined_blocks import concatenate
from keras_efficient.ops.joined_blocks import cut
from keras_efficient.ops.micro_adam_arguments import MicroAdamState
from keras_efficient.ops.micro_adam_arguments import flat_shapes
from keras_efficient.ops.quantize_4bit import dequantize_4bit
from keras_efficient.ops.quantize_4bit import quantize_4bit
from keras_efficient.ops.round_to_bfloat16 import round_to_bfloat16
from keras_efficient.ops.uniform_noise import uniform_noises


def micro_adam_step(
    gradient,
    state,
    step,
    block_size=256,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    alpha=0.4,
    rounding="stochastic",
    bias_correction="window",
    seed=0,
):
    """Compute one step of MicroAdam for one tensor.

    The gradient plus the error feedback, `a`, is cut into blocks. The k
    largest entries of each go into a window of the last m steps; of the rest,
    the part `alpha` moves the parameters at once, by the second moment `v` of
    its block, and what is left is the new error feedback, in four bits an
    entry:

    ```
    a = g + dequantize(e)            v = beta_2 v + (1 - beta_2) mean(g^2)
    I, V = block_top_k(a, k)         v^ = v / (1 - beta_2^t)
    r = a - V at I                   e = quantize((1 - alpha) r)
    z1 = c1 sum_j beta_1^age(j) V_j  z2 = c2 sum_j beta_2^age(j) V_j^2
    u = z1 / (sqrt(z2) + epsilon) + alpha r / (sqrt(v^) + epsilon)
    ```

    The sums go over the rows j of the window, at the indices of each row.
    `c1` and `c2` correct their bias (`bias_correction`): `"window"` takes
    means, weighted by `beta^age`, and in that of the second moment an entry
    counts as `v^` in the rows that do not hold it; `"full"` takes Adam's
    `(1 - beta) / (1 - beta^t)` and 0 there.

    This differs from the paper in the points argued at the top of this file.
    The paper's Algorithm 1 is `alpha=0, bias_correction="full",
    rounding="nearest"`.

    With k = 0 there is no window: the rest is all there is, and u is the
    second of its two terms.

    Args:
        gradient: Tensor g of any shape.
        state: `MicroAdamState`, all zeros at first.
        step: Integer tensor t, the number of this step, counted from 1.
        block_size: Integer B. Defaults to `256`.
        beta_1: Float. Defaults to `0.9`.
        beta_2: Float. Defaults to `0.999`.
        epsilon: Float. Defaults to `1e-7`.
        alpha: Float in [0, 1]. Defaults to `0.4`.
        rounding: `"stochastic"` or `"nearest"`, for the error feedback.
            Defaults to `"stochastic"`.
        bias_correction: `"window"` or `"full"`. Defaults to `"window"`.
        seed: Integer, different for each tensor. Defaults to `0`.

    Returns:
        `(u, state)`: the update in float32, of the shape of the gradient,
        and the new state. The caller subtracts `learning_rate * u`.

    Reference:
        - [Modoranu et al., 2024](https://arxiv.org/abs/2405.15593)
    """
    ((update, state),) = micro_adam_steps(
        [gradient],
        [state],
        step,
        [seed],
        block_size=block_size,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        alpha=alpha,
        rounding=rounding,
        bias_correction=bias_correction,
    )
    return update, state


def micro_adam_steps(
    gradients,
    states,
    step,
    seeds,
    block_size,
    beta_1,
    beta_2,
    epsilon,
    alpha,
    rounding,
    bias_correction,
    places=None,
):
    """Do `micro_adam_step` for several tensors, in one call of each operation.

    Blocks know nothing of the tensor they are in, as long as `bucket_size`
    divides `block_size`.

    Args:
        gradients: List of tensors.
        states: List of `MicroAdamState`, with equal numbers but for sizes.
        step: Integer tensor.
        seeds: List of integers.
        places: List with, for each shard, the places of its entries in the
            whole tensor, as `uniform_noises` takes them. Defaults to `None`:
            from 0 on.

    Returns:
        List of pairs `(u, state)`.
    """
    step = ops.cast(step, "int32")
    t = ops.cast(step, "float32")
    joined = JoinedBlocks([g.shape for g in gradients], block_size)
    shapes = [[tuple(x.shape) for x in state] for state in states]
    states = [
        map(ops.reshape, x, flat_shapes(s)) for x, s in zip(states, shapes)
    ]
    slots = MicroAdamState(*zip(*states))
    k, bucket_size = slots.indices[0].shape[2], 2 * slots.codes[0].shape[1]
    buckets_a_block = block_size // bucket_size

    g = joined.join([finite_gradient(g) for g in gradients])
    square = ops.sum(g * g / joined.counts(), axis=-1, keepdims=True)
    velocity = joined.join_rows(slots.velocity, 1)
    velocity = beta_2 * velocity + (1 - beta_2) * square
    v_hat = velocity / one_minus_power(beta_2, t)

    # The largest entries, and the rest
    codes, low, high = (
        joined.join_rows(x, buckets_a_block) for x in slots[3:6]
    )
    e = dequantize_4bit(codes, low, high)
    e = joined.split(ops.reshape(e, g.shape))  # without what fills up blocks
    a = g + joined.join(e)
    rest = a
    if k:
        new_indices, new_values = block_top_k(a, k)
        if keras.backend.standardize_dtype(slots.values[0].dtype) == "bfloat16":
            new_values = round_to_bfloat16(new_values)
        rest = a - at_indices(new_indices, new_values, block_size)
    u_rest = alpha * rest / (ops.sqrt(v_hat) + epsilon)

    # The new error feedback
    e = ops.reshape((1 - alpha) * rest, (-1, bucket_size))
    noise = 0.5
    if rounding == "stochastic":
        sizes = [blocks * block_size for blocks in joined.blocks]
        noise = uniform_noises(dict(zip(seeds, places or sizes)), step)
        noise = ops.reshape(noise, e.shape)
    error = [
        joined.split_rows(x, like)
        for x, like in zip(quantize_4bit(e, noise), slots[3:6])
    ]

    velocities = joined.split_rows(velocity, slots.velocity)
    if not k:
        written = [ops.reshape(step, (1,)) for _ in shapes]
        window = slots.indices, slots.values, written
        return _results(
            joined.split(u_rest), zip(*window, *error, velocities), shapes
        )
    indices, values, written = _write_row(
        slots, new_indices, new_values, step, joined.blocks
    )
    u = u_rest + _adam_over_window(
        indices,
        values,
        written,
        blocks=joined.blocks,
        block_size=block_size,
        t=t,
        v_hat=v_hat,
        betas=(beta_1, beta_2),
        epsilon=epsilon,
        bias_correction=bias_correction,
    )
    window = [cut(x, joined.blocks, 1) for x in (indices, values)]
    rows = cut(written, [1 for _ in shapes], 1)
    window.append([ops.reshape(row, (-1,)) for row in rows])
    return _results(joined.split(u), zip(*window, *error, velocities), shapes)


def _results(updates, states, shapes):
    """Return pairs of updates and states, these of the shapes they had."""
    return [
        (u, MicroAdamState(*map(ops.reshape, state, shape)))
        for u, state, shape in zip(updates, states, shapes)
    ]


def _write_row(slots, indices, values, step, blocks):
    """Let the oldest row of each window make room."""
    written = ops.stack(slots.written, axis=1)
    rows = ops.arange(written.shape[0], dtype="int32")[:, None]
    oldest = rows == ops.cast(ops.argmin(written, axis=0), "int32")
    written = ops.where(oldest, step, written)
    oldest = ops.expand_dims(_for_blocks(oldest, blocks), -1)
    window = []
    for new, old in ((indices, slots.indices), (values, slots.values)):
        old = concatenate(old, 1)
        window.append(ops.where(oldest, ops.cast(new, old.dtype), old))
    return *window, written


def _for_blocks(x, blocks):
    """Repeat columns, one a tensor, for the blocks of each tensor."""
    if len(blocks) == 1:
        return x
    return ops.repeat(x, ops.convert_to_tensor(blocks, "int32"), axis=1)


def _adam_over_window(
    indices,
    values,
    written,
    blocks,
    block_size,
    t,
    v_hat,
    betas,
    epsilon,
    bias_correction,
):
    beta_1, beta_2 = betas
    age = t - ops.cast(written, "float32")
    weights = [
        _for_blocks(ops.where(written > 0, ops.power(beta, age), 0.0), blocks)
        for beta in betas
    ]
    w_1, w_2 = (ops.expand_dims(w, -1) for w in weights)
    c_1, c_2 = (ops.reshape(ops.sum(w, axis=0), (-1, 1)) for w in weights)
    v = ops.cast(values, "float32")
    z_1 = at_indices(indices, w_1 * v, block_size)
    z_2 = at_indices(indices, w_2 * v * v, block_size)
    if bias_correction == "full":
        z_1 = z_1 * ((1 - beta_1) / one_minus_power(beta_1, t))
        z_2 = z_2 * ((1 - beta_2) / one_minus_power(beta_2, t))
    else:
        held = at_indices(indices, w_2 * ops.ones_like(v), block_size)
        z_1 = z_1 / c_1
        # An entry that all rows hold leaves a rounding error, of any sign.
        free = ops.maximum(c_2 - held, 0.0)
        z_2 = (z_2 + free * v_hat) / c_2
    return z_1 / (ops.sqrt(z_2) + epsilon)
