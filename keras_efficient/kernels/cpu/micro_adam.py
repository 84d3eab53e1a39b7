"""The step of `keras_efficient.ops.micro_adam_step` in one pass, in place."""

import numba
import numpy as np

from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.micro_adam_blocks import make_spaces
from keras_efficient.kernels.cpu.micro_adam_blocks import step_blocks
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi

# Fewer entries are done sooner than other threads have woken up.
ENTRIES_A_PART = 2**16

_F = np.float32
_ZERO = _F(0)


@numba_ffi(
    in_place=(
        *("parameter", "indices", "values", "written"),
        *("codes", "low", "high", "velocity"),
    ),
    dtypes={
        "parameter": ("float32", "bfloat16"),
        "indices": ("uint8", "int16"),
        "values": ("float32", "bfloat16"),
        "written": "int32",
        "codes": "uint8",
        "low": "bfloat16",
        "high": "bfloat16",
        "velocity": "float32",
        "gradient": ("float32", "bfloat16"),
        **dict.fromkeys(
            ("learning_rate", "momentum_bias", "velocity_bias", "options"),
            "float32",
        ),
        **dict.fromkeys(("step", "block_size", "seed"), "int32"),
        **dict.fromkeys(("is_stochastic", "is_window", "fused"), "bool"),
    },
    parallel=True,
)
def micro_adam(
    parameter,
    indices,
    values,
    written,
    codes,
    low,
    high,
    velocity,
    gradient,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    options,
    block_size,
    seed,
    is_stochastic,
    is_window,
    fused,
):
    """Update a parameter and its state.

    Args:
        parameter: Array, not empty.
        indices: Array as in `MicroAdamState`, as are those up to `velocity`.
        values: See `indices`.
        written: See `indices`.
        codes: See `indices`.
        low: See `indices`.
        high: See `indices`.
        velocity: See `indices`.
        gradient: Array of the shape of the parameter.
        learning_rate: Scalar, as are `momentum_bias`, which is
            1 - beta_1^step, `velocity_bias`, 1 - beta_2^step, and `step`.
        options: The seven numbers beta_1, 1 - beta_1, beta_2, 1 - beta_2,
            epsilon, alpha and 1 - alpha.
        block_size: Integer.
        seed: int32 for the noise.
        is_stochastic: Whether rounding is stochastic.
        is_window: Whether the bias correction is that of the window.
        fused: Whether codes are computed with fused multiply-adds.
    """
    row, weights, sums = write_row(written, step[0], options)
    numbers = gather(
        *(learning_rate[0], momentum_bias[0], velocity_bias[0]),
        *(options, sums, is_window[0], fused[0]),
    )
    key = noise_key(step[0], seed[0], is_stochastic[0])
    half = codes.shape[1]
    codes, low, high = codes.reshape(-1), low.reshape(-1), high.reshape(-1)
    velocity = velocity.reshape(-1)
    parameter, gradient = parameter.reshape(-1), gradient.reshape(-1)
    arrays = parameter, gradient, indices, values, codes, low, high, velocity
    layout = np.int64(block_size[0]), half, row, key
    blocks = velocity.size
    parts = parameter.size // ENTRIES_A_PART
    if parts <= 1:
        spaces = make_spaces(layout[0])
        step_blocks(
            *(0, blocks, arrays, weights, options, layout, numbers, spaces)
        )
        return
    for part in numba.prange(parts):
        first, last = part * blocks // parts, (part + 1) * blocks // parts
        spaces = make_spaces(layout[0])
        step_blocks(
            *(first, last, arrays, weights, options, layout, numbers, spaces)
        )


@jit
def noise_key(step, seed, is_stochastic):
    """Return what `fill_noise` takes."""
    if not is_stochastic:
        return np.int64(-1)
    return np.int64(mix(np.uint32(step) + mix(np.uint32(seed))))


@jit
def gather(
    learning_rate,
    momentum_bias,
    velocity_bias,
    options,
    sums,
    is_window,
    fused,
):
    """Return the numbers that `step_blocks` needs."""
    c_1, c_2, total = sums[0], sums[1], sums[1]
    if not is_window:
        c_1, c_2 = momentum_bias / options[1], velocity_bias / options[3]
        total = _ZERO
    return fused, learning_rate, velocity_bias, c_1, c_2, total


# Not within the kernel: Numba would wake all threads for each of these sums.
@jit
def write_row(written, step, options):
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
            weights[0, j] = _F(np.float64(options[0]) ** age)
            weights[1, j] = _F(np.float64(options[2]) ** age)
    return row, weights, (np.sum(weights[0]), np.sum(weights[1]))
