"""The step of MicroAdam for blocks of a parameter, in one pass, in place."""

from collections import namedtuple

import numpy as np
from numba import types
from numba.extending import overload

from keras_efficient.kernels.cpu.block_top_k import find_largest
from keras_efficient.kernels.cpu.group import to_float32
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.quantize_4bit import bfloat16_bits
from keras_efficient.kernels.cpu.quantize_4bit import decode
from keras_efficient.kernels.cpu.quantize_4bit import encode
from keras_efficient.kernels.cpu.quantize_4bit import fill_noise
from keras_efficient.kernels.cpu.quantize_4bit import round_to_bfloat16
from keras_efficient.kernels.cpu.vectors import LENGTH
from keras_efficient.kernels.cpu.vectors import adam_of_window
from keras_efficient.kernels.cpu.vectors import add_to_window
from keras_efficient.kernels.cpu.vectors import take_from_window
from keras_efficient.kernels.cpu.weights import move

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LARGEST_GRADIENT = _F(1e18)

# The parts of the work space, each for the largest block and a run: the rest,
# in the end the update, and its noise; the update by the window, of all entries
# and of those that are in it alone. LLVM makes vectors of loops whose arrays do
# not overlap, and of parts of one array it knows. Their distance is no power of
# 2, for the sake of the cache.
_SIZE = 2**15 + 5 * LENGTH
_REST, _NOISE, _U, _U_HELD = range(0, 4 * _SIZE, _SIZE)


# The tensors of a parameter: matrices of one column, codes and what has the
# shape of the parameter are vectors; the correction may be empty, and so may
# the places of blocks in the whole parameter, where they are in a row.
Arrays = namedtuple(
    "Arrays",
    (
        "parameter",
        "correction",
        "indices",
        "values",
        "codes",
        "low",
        "high",
        "velocity",
        "gradient",
        "places",
    ),
)

# What a thread works in. window: sums over the window of each entry; taken: of
# those that are in it alone; places: where these are.
Spaces = namedtuple(
    "Spaces",
    ("work", "window", "taken", "largest", "magnitudes", "places"),
)


@jit
def make_spaces(block_size):
    """Return the `Spaces` of a thread; `step_blocks` leaves them in order."""
    work = np.empty(4 * _SIZE, _F)
    work[_REST : _REST + block_size + LENGTH] = _ZERO
    work[_U : _U + block_size] = _ZERO
    return Spaces(
        work=work,
        window=np.zeros(4 * block_size, _F),
        taken=np.empty(4 * (block_size + LENGTH), _F),
        largest=np.arange(2 * block_size + 1),
        magnitudes=np.empty(block_size + LENGTH, np.int32),
        places=np.empty(block_size + 1, np.int32),
    )


@jit
def step_blocks(
    first, last, arrays, weights, layout, numbers, spaces, rounding
):
    """Go through blocks."""
    parameter, gradient = arrays.parameter, arrays.gradient
    indices, values, velocity = arrays.indices, arrays.values, arrays.velocity
    codes, low, high = arrays.codes, arrays.low, arrays.high
    block_size, half = layout.block_size, layout.half
    k, fused, epsilon = indices.shape[2], numbers.fused, numbers.epsilon
    work, taken, places = spaces.work, spaces.taken, spaces.places
    correction = arrays.correction
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
        velocity[block] = numbers.b_2 * velocity[block] + numbers.d_2 * square
        v_hat = velocity[block] / numbers.bias
        if 0 < k < block_size:
            find_largest(
                work, _REST, block_size, k, spaces.largest, spaces.magnitudes
            )
        row = layout.row
        _move(work, indices[row, block], values[row, block], spaces.largest)
        size = (last_bucket - first_bucket) * 2 * half
        place = np.int64(arrays.places[block]) if arrays.places.size else block
        fill_noise(work, _NOISE, size, place * block_size, layout.noise)
        for j in range(first_bucket, last_bucket):
            at = (j - first_bucket) * 2 * half
            bytes_ = codes[j * half : (j + 1) * half]
            low[j], high[j] = encode(
                work, _REST + at, bytes_, numbers.keep, _NOISE - _REST, fused
            )
        count = _take_window(
            block, indices, values, weights, spaces.window, taken, places
        )
        scale_1, scale_2 = _ONE / numbers.c_1, _ONE / numbers.c_2
        total = numbers.total
        # Up to 31 entries too many, of numbers that nobody reads.
        for i in range(0, count, LENGTH):
            at = _U_HELD + i
            adam_of_window(
                taken, i, work, at, scale_1, scale_2, total, v_hat, epsilon
            )
        for i in range(count):
            work[_U + places[i]] = work[_U_HELD + i]
        factor = numbers.alpha / (np.sqrt(v_hat) + epsilon)
        entries = parameter[start:end]
        update(entries, correction, work, factor, start, rounding)
        for i in range(count):
            work[_U + places[i]] = _ZERO


@jit
def _finite(g):
    g = to_float32(g)
    return g if abs(g) < _LARGEST_GRADIENT else _ZERO


@jit
def _add_gradient(work, gradient):
    for i in range(gradient.size):
        work[_REST + i] += _finite(gradient[i])


# Sums in any order, as vectors need it.
@jit(fastmath={"reassoc"})
def _mean_of_squares(gradient):
    part, total = _ONE / _F(gradient.size), _ZERO
    for i in range(gradient.size):
        g = _finite(gradient[i])
        total += g * (g * part)
    return total


@jit
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


@jit
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


def update(parameter, correction, work, factor, start, rounding):
    """Move a block by the window's update and `factor` times the rest."""


@overload(update)
def _update(parameter, correction, work, factor, start, rounding):
    if parameter.dtype == types.float32:
        return _update_float32
    return _update_bfloat16


# In one loop, which saves a fifth of the time of the whole step.
def _update_float32(parameter, correction, work, factor, start, rounding):
    for i in range(parameter.size):
        u = work[_REST + i] * factor + work[_U + i]
        parameter[i] = parameter[i] - rounding.rate * u


def _update_bfloat16(parameter, correction, work, factor, start, rounding):
    for i in range(parameter.size):
        work[_REST + i] = work[_REST + i] * factor + work[_U + i]
    move(parameter, correction, work, start, rounding)
