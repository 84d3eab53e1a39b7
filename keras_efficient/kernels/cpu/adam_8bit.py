"""The step of `keras_efficient.ops.adam_8bit_step` in one pass, in place."""

import numba
import numpy as np

from keras_efficient.kernels.cpu.group import GROUP_SIZE
from keras_efficient.kernels.cpu.group import decode_float16
from keras_efficient.kernels.cpu.group import fill_group
from keras_efficient.kernels.cpu.group import fused_multiply_add
from keras_efficient.kernels.cpu.group import largest_of_group
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.group import round_to_float16
from keras_efficient.kernels.cpu.group import subtract
from keras_efficient.kernels.cpu.group import to_float32
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi

# Groups that are worked on together: all that belongs to them stays in the
# cache of level 1, and loops over them are long enough for vectors.
TILE = 16
# Fewer entries are done sooner than other threads have woken up.
ENTRIES_A_PART = 2**15

_F = np.float32
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
_LARGEST_GRADIENT = _F(1e18)
_LARGEST_FLOAT16 = _F(65504)
_SMALLEST_SCALE = _F(2.0**-48)
_TO_NEAREST = np.int32(1 << 23)


@numba_ffi(
    in_place=(
        "parameter",
        *("momentum_codes", "momentum_scale"),
        *("velocity_codes", "velocity_scale"),
    ),
    dtypes={
        "parameter": ("float32", "bfloat16"),
        "momentum_codes": "int8",
        "momentum_scale": "float16",
        "velocity_codes": "uint8",
        "velocity_scale": "float16",
        "gradient": ("float32", "bfloat16"),
        **dict.fromkeys(
            ("learning_rate", "momentum_bias", "velocity_bias", "options"),
            "float32",
        ),
        **dict.fromkeys(("step", "seed"), "int32"),
        "fused": "bool",
    },
    parallel=True,
)
def adam_8bit(
    parameter,
    momentum_codes,
    momentum_scale,
    velocity_codes,
    velocity_scale,
    gradient,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    options,
    seed,
    fused,
):
    """Update a parameter and its state.

    Args:
        parameter: Array of shape (rows, columns), as are the codes and the
            gradient.
        momentum_codes: int8.
        momentum_scale: float16 of shape (rows, ceil(columns / 32)).
        velocity_codes: uint8.
        velocity_scale: As `momentum_scale`.
        gradient: Of the parameter.
        learning_rate: Scalar, as are `momentum_bias`, which is
            1 - beta_1^step, `velocity_bias`, 1 - beta_2^step, and `step`.
        options: The five numbers beta_1, 1 - beta_1, beta_2, 1 - beta_2 and
            epsilon.
        seed: int32 for the noise.
        fused: Whether moments are computed with fused multiply-adds.
    """
    tiles, a_row, columns = divide(*parameter.shape, momentum_scale.size)
    numbers = gather(
        *(learning_rate[0], momentum_bias[0], velocity_bias[0]),
        *(options, fused[0]),
    )
    noise = mix(np.uint32(step[0]) + mix(np.uint32(seed[0])))
    parameter, gradient = parameter.reshape(-1), gradient.reshape(-1)
    m_codes, v_codes = momentum_codes.reshape(-1), velocity_codes.reshape(-1)
    m_scale, v_scale = momentum_scale.reshape(-1), velocity_scale.reshape(-1)
    arrays = parameter, m_codes, m_scale, v_codes, v_scale, gradient
    parts = parameter.size // ENTRIES_A_PART
    if parts <= 1:
        run(0, tiles, a_row, columns, arrays, numbers, noise)
        return
    for part in numba.prange(parts):
        first, last = part * tiles // parts, (part + 1) * tiles // parts
        run(first, last, a_row, columns, arrays, numbers, noise)


@jit
def divide(rows, columns, groups):
    """Return how many tiles there are, and in a row; and how long rows are."""
    if columns % GROUP_SIZE == 0:
        rows, columns = 1, rows * columns
    a_row = (groups // rows + TILE - 1) // TILE
    return rows * a_row, a_row, columns


@jit
def gather(learning_rate, momentum_bias, velocity_bias, options, fused):
    """Return the numbers that `run` needs."""
    b_1, c_1, b_2, c_2, epsilon = options
    rate = learning_rate / momentum_bias
    root = _ONE / np.sqrt(velocity_bias)
    return b_1, c_1, b_2, c_2, rate, root, epsilon, fused


# The parts of the work space: moments, then a factor for each of their entries;
# for each group, what its scale is made of. LLVM makes vectors of loops whose
# arrays do not overlap; of many arrays it does not find that out, of parts of
# one array it knows.
_SIZE = TILE * GROUP_SIZE
_M, _V, _M_FACTOR, _V_FACTOR = 0, _SIZE, 2 * _SIZE, 3 * _SIZE
_M_GROUP, _V_GROUP = 4 * _SIZE, 4 * _SIZE + TILE


@jit
def run(first, last, a_row, columns, arrays, numbers, noise):
    """Go through tiles; `a_row` is how many there are in a row."""
    parameter, m_codes, m_scale, v_codes, v_scale, gradient = arrays
    work = np.empty(4 * _SIZE + 2 * TILE, _F)
    groups_a_row = (columns + GROUP_SIZE - 1) // GROUP_SIZE
    for tile in range(first, last):
        row = tile // a_row
        column = (tile - row * a_row) * _SIZE
        start = row * columns + column
        size = min(_SIZE, columns - column)
        group = row * groups_a_row + column // GROUP_SIZE
        count = max(1, (size + GROUP_SIZE - 1) // GROUP_SIZE)
        m_scales = m_scale[group : group + count]
        v_scales = v_scale[group : group + count]
        _decode_scales(m_scales, v_scales, work)
        _fill_groups(work, count)
        end = start + size
        _update(
            parameter[start:end],
            gradient[start:end],
            m_codes[start:end],
            v_codes[start:end],
            work,
            numbers,
        )
        # The last group of a row may be short.
        for i in range(size, count * GROUP_SIZE):
            work[_M + i] = work[_V + i] = _ZERO
        for j in range(count):
            work[_M_GROUP + j] = largest_of_group(work, _M // GROUP_SIZE + j)
            work[_V_GROUP + j] = largest_of_group(work, _V // GROUP_SIZE + j)
        _encode_scales(m_scales, v_scales, work, np.uint32(group + noise))
        _fill_groups(work, count)
        _encode(m_codes[start:end], v_codes[start:end], work)


@jit
def _fill_groups(work, count):
    """Give all entries of a group its factor."""
    for j in range(count):
        fill_group(work, _M_FACTOR // GROUP_SIZE + j, work[_M_GROUP + j])
        fill_group(work, _V_FACTOR // GROUP_SIZE + j, work[_V_GROUP + j])


@jit
def _decode_scales(m_scale, v_scale, work):
    for j in range(m_scale.size):
        root = decode_float16(m_scale[j])
        work[_M_GROUP + j] = root * root
        root = decode_float16(v_scale[j])
        work[_V_GROUP + j] = root * root * _F(1 / 255)


@jit
def _encode_scales(m_scale, v_scale, work, noise):
    for j in range(m_scale.size):
        x = _root_of_scale(work[_M_GROUP + j])
        scale = round_to_float16(x, _TO_NEAREST)
        m_scale[j] = scale
        work[_M_GROUP + j] = _inverse(scale)
        x = _root_of_scale(work[_V_GROUP + j])
        bits = mix(np.uint32(noise + np.uint32(j)))
        scale = round_to_float16(x, np.int32(bits >> np.uint32(8)))
        v_scale[j] = scale
        work[_V_GROUP + j] = _inverse(scale)


@jit
def _update(parameter, gradient, m_codes, v_codes, work, numbers):
    """Compute both moments, the second as its root, and the step."""
    b_1, c_1, b_2, c_2, rate, root, epsilon, fused = numbers
    for i in range(parameter.size):
        g = to_float32(gradient[i])
        g = g if abs(g) < _LARGEST_GRADIENT else _ZERO
        y = _F(m_codes[i]) * _F(1 / 127)
        m = work[_M_FACTOR + i] * (y / (_F(2) - abs(y)))
        y = _F(v_codes[i]) * work[_V_FACTOR + i]
        v = y * y
        if fused:
            m = fused_multiply_add(b_1, m, c_1 * g)
            v = fused_multiply_add(c_2 * g, g, b_2 * v)
        else:
            m = b_1 * m + c_1 * g
            v = b_2 * v + c_2 * g * g
        v = np.sqrt(v)
        work[_M + i] = m
        work[_V + i] = v
        step = rate * m / (v * root + epsilon)
        parameter[i] = subtract(parameter[i], step)


@jit
def _root_of_scale(largest):
    root = np.sqrt(largest)
    return root if root < _LARGEST_FLOAT16 else _LARGEST_FLOAT16


@jit
def _inverse(scale):
    root = decode_float16(scale)
    square = root * root
    return _ONE / (square if square > _SMALLEST_SCALE else _SMALLEST_SCALE)


@jit
def _encode(m_codes, v_codes, work):
    for i in range(m_codes.size):
        x = work[_M + i] * work[_M_FACTOR + i]
        x = x if x > -_ONE else -_ONE
        x = x if x < _ONE else _ONE
        y = _F(254) * x / (_ONE + abs(x))
        m_codes[i] = np.int8(np.int32(np.floor(y + _HALF)))
        v = work[_V + i]
        x = v * work[_V_FACTOR + i]
        y = _F(255) * (x if x < _ONE else _ONE)
        least = _ONE if v > _ZERO else _ZERO
        y = y if y > least else least
        v_codes[i] = np.uint8(np.int32(np.floor(y + _HALF)))
