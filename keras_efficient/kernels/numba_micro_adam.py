"""The step of `keras_efficient.ops.micro_adam_step` in one pass, in place."""

import functools

import numba
import numpy as np
from numba import types
from numba.extending import overload

from keras_efficient.kernels.numba_block_top_k import find_largest
from keras_efficient.kernels.numba_ffi import numba_ffi
from keras_efficient.kernels.numba_group import mix
from keras_efficient.kernels.numba_group import subtract
from keras_efficient.kernels.numba_group import to_float32
from keras_efficient.kernels.numba_quantize_4bit import bfloat16_bits
from keras_efficient.kernels.numba_quantize_4bit import decode
from keras_efficient.kernels.numba_quantize_4bit import encode
from keras_efficient.kernels.numba_quantize_4bit import fill_noise
from keras_efficient.kernels.numba_quantize_4bit import round_to_bfloat16
from keras_efficient.kernels.numba_vectors import LENGTH
from keras_efficient.kernels.numba_vectors import adam_of_window
from keras_efficient.kernels.numba_vectors import add_to_window
from keras_efficient.kernels.numba_vectors import take_from_window

# Fewer entries are done sooner than other threads have woken up.
ENTRIES_A_THREAD = 2**16

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LARGEST_GRADIENT = _F(1e18)

_jit = functools.partial(
    numba.njit, error_model="numpy", nogil=True, cache=True
)

# The parts of the work space, each for the largest block and a run: the rest
# and its noise; the update by the window, of all entries and of those that are
# in it alone. LLVM makes vectors of loops whose arrays do not overlap, and of
# parts of one array it knows. Their distance is no power of 2, for the sake of
# the cache.
_SIZE = 2**15 + 5 * LENGTH
_REST, _NOISE, _U, _U_HELD = range(0, 4 * _SIZE, _SIZE)


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
    row, weights, c_1, c_2 = _write_row(written, step[0], options)
    corrections = c_1, c_2, c_2
    if not is_window[0]:
        corrections = (
            momentum_bias[0] / options[1],
            velocity_bias[0] / options[3],
            _ZERO,
        )
    key = np.int64(-1)
    if is_stochastic[0]:
        key = np.int64(mix(np.uint32(step[0]) + mix(np.uint32(seed[0]))))
    half = codes.shape[1]
    codes, low, high = codes.reshape(-1), low.reshape(-1), high.reshape(-1)
    velocity = velocity.reshape(-1)
    parameter, gradient = parameter.reshape(-1), gradient.reshape(-1)
    arrays = parameter, gradient, indices, values, codes, low, high, velocity
    rate, bias = learning_rate[0], velocity_bias[0]
    layout = np.int64(block_size[0]), half, row
    numbers = key, fused[0], rate, bias, *corrections
    blocks = velocity.size
    parts = parameter.size // ENTRIES_A_THREAD
    if parts <= 1:
        _run(0, blocks, arrays, weights, options, layout, numbers)
        return
    for part in numba.prange(parts):
        first, last = part * blocks // parts, (part + 1) * blocks // parts
        _run(first, last, arrays, weights, options, layout, numbers)


# Not within the kernel: Numba would wake all threads for each of these sums.
@_jit
def _write_row(written, step, options):
    """Give the oldest row to this step.

    Returns:
        The row, beta_1^age and beta_2^age of each row, 0 for those not
        written, and the sum of either.
    """
    row = np.argmin(written)
    written[row] = step
    weights = np.zeros((2, written.size), _F)
    for j in range(written.size):
        if written[j] > 0:
            age = np.float64(step - written[j])
            weights[0, j] = _F(np.float64(options[0]) ** age)
            weights[1, j] = _F(np.float64(options[2]) ** age)
    return row, weights, np.sum(weights[0]), np.sum(weights[1])


@_jit
def _run(first, last, arrays, weights, options, layout, numbers):
    """Go through blocks."""
    parameter, gradient, indices, values, codes, low, high, velocity = arrays
    block_size, half, row = layout
    k = indices.shape[2]
    key, fused, rate, bias, c_1, c_2, total = numbers
    _, _, b_2, d_2, epsilon, alpha, keep = options
    work = np.empty(4 * _SIZE, _F)
    work[_REST : _REST + block_size + LENGTH] = _ZERO
    work[_U : _U + block_size] = _ZERO
    # Sums over the window of each entry, and of those that are in it alone.
    window = np.zeros(4 * block_size, _F)
    taken = np.empty(4 * (block_size + LENGTH), _F)
    largest = np.arange(2 * block_size + 1)
    magnitudes = np.empty(block_size + LENGTH, np.int32)
    places = np.empty(block_size + 1, np.int32)
    buckets_a_block = block_size // (2 * half)
    for block in range(first, last):
        start = block * block_size
        end = min(start + block_size, parameter.size)
        g = gradient[start:end]
        first_bucket = block * buckets_a_block
        last_bucket = min(first_bucket + buckets_a_block, low.size)
        for j in range(first_bucket, last_bucket):
            at = (j - first_bucket) * 2 * half
            bytes_ = codes[j * half : (j + 1) * half]
            decode(work, _REST + at, bytes_, low[j], high[j], fused)
        work[_REST + g.size : _REST + block_size] = _ZERO
        _add_gradient(work, g)
        square = _mean_of_squares(g)
        velocity[block] = b_2 * velocity[block] + d_2 * square
        v_hat = velocity[block] / bias
        if k < block_size:
            find_largest(work, _REST, block_size, k, largest, magnitudes)
        _move(work, indices[row, block], values[row, block], largest)
        size = (last_bucket - first_bucket) * 2 * half
        fill_noise(work, _NOISE, size, start, key)
        for j in range(first_bucket, last_bucket):
            at = (j - first_bucket) * 2 * half
            bytes_ = codes[j * half : (j + 1) * half]
            low[j], high[j] = encode(
                work, _REST + at, bytes_, keep, _NOISE - _REST, fused
            )
        count = _take_window(
            block, indices, values, weights, window, taken, places
        )
        # Up to 31 entries too many, of numbers that nobody reads.
        for i in range(0, count, LENGTH):
            adam_of_window(
                *(taken, i, work, _U_HELD + i),
                *(_ONE / c_1, _ONE / c_2, total, v_hat, epsilon),
            )
        for i in range(count):
            work[_U + places[i]] = work[_U_HELD + i]
        factor = alpha / (np.sqrt(v_hat) + epsilon)
        _update(parameter[start:end], work, rate, factor)
        for i in range(count):
            work[_U + places[i]] = _ZERO


@_jit
def _finite(g):
    g = to_float32(g)
    return g if abs(g) < _LARGEST_GRADIENT else _ZERO


@_jit
def _add_gradient(work, gradient):
    for i in range(gradient.size):
        work[_REST + i] += _finite(gradient[i])


# Sums in any order, as vectors need it.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _mean_of_squares(gradient):
    part, total = _ONE / _F(gradient.size), _ZERO
    for i in range(gradient.size):
        g = _finite(gradient[i])
        total += g * (g * part)
    return total


@_jit
def _move(work, indices, values, largest):
    """Move the largest entries from the rest into a row of the window."""
    for i in range(indices.size):
        place = largest[i]
        x = work[_REST + place]
        indices[i] = place
        values[i] = as_stored(x, values[i])
        work[_REST + place] = x - to_float32(values[i])


def as_stored(x, like):
    """Return x as float32, or as the bits of bfloat16 if `like` is that."""


@overload(as_stored)
def _as_stored(x, like):
    if like == types.uint16:
        return lambda x, like: bfloat16_bits(round_to_bfloat16(x))
    return lambda x, like: x


@_jit
def _take_window(block, indices, values, weights, window, taken, places):
    """Sum the rows of the window that hold an entry.

    Few entries of a block are held by any row. Their sums, four numbers each,
    go to `taken`, and `window` is 0 again. Returns how many, after writing
    their places.
    """
    rows, _, k = indices.shape
    for j in range(rows):
        w_1, w_2 = weights[0, j], weights[1, j]
        if w_1 == _ZERO and w_2 == _ZERO:
            continue
        for i in range(k):
            at = np.int64(indices[j, block, i])
            add_to_window(window, at, to_float32(values[j, block, i]), w_1, w_2)
    count = 0
    for j in range(rows):
        for i in range(k):
            at = np.int64(indices[j, block, i])
            places[count] = at
            z_1 = take_from_window(window, at, taken, count)
            count += z_1 != _ZERO
    return count


@_jit
def _update(parameter, work, rate, factor):
    for i in range(parameter.size):
        u = work[_REST + i] * factor + work[_U + i]
        parameter[i] = subtract(parameter[i], rate * u)
