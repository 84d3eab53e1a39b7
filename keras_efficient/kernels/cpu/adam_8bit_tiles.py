"""The step of 8-bit Adam for tiles of a parameter, in one pass, in place."""

from collections import namedtuple

import numpy as np

from keras_efficient.kernels.cpu.group import GROUP_SIZE
from keras_efficient.kernels.cpu.group import decode_float16
from keras_efficient.kernels.cpu.group import fill_group
from keras_efficient.kernels.cpu.group import fused_multiply_add
from keras_efficient.kernels.cpu.group import largest_of_group
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.group import round_to_float16
from keras_efficient.kernels.cpu.group import to_float32
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.weights import move

# Groups that are worked on together: all that belongs to them stays in the
# cache of level 1, and loops over them are long enough for vectors.
TILE = 16

_F = np.float32
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
_LARGEST_GRADIENT = _F(1e18)
_LARGEST_FLOAT16 = _F(65504)
_SMALLEST_SCALE = _F(2.0**-48)
_TO_NEAREST = np.int32(1 << 23)

# The tensors of a parameter, as vectors. correction: empty for none; places:
# of groups in the whole parameter, empty for one after another.
Arrays = namedtuple(
    "Arrays",
    (
        "parameter",
        "correction",
        "m_codes",
        "m_scale",
        "v_codes",
        "v_scale",
        "gradient",
        "places",
    ),
)

# b_1, c_1, b_2, c_2, epsilon: as in `constants`; bias: of the momentum; root:
#   1 / root of the bias of the velocity;
# fused: whether there are fused multiply-adds.
Numbers = namedtuple(
    "Numbers",
    ("b_1", "c_1", "b_2", "c_2", "epsilon", "bias", "root", "fused"),
)


@jit
def divide(rows, columns, groups):
    """Return how many tiles there are, and in a row; and how long rows are."""
    if columns % GROUP_SIZE == 0:
        rows, columns = 1, rows * columns
    a_row = (groups // rows + TILE - 1) // TILE
    return rows * a_row, a_row, columns


@jit
def gather(momentum_bias, velocity_bias, constants, fused):
    """Return the `Numbers` of a step."""
    return Numbers(
        b_1=constants[0],
        c_1=constants[1],
        b_2=constants[2],
        c_2=constants[3],
        epsilon=constants[4],
        bias=momentum_bias,
        root=_ONE / np.sqrt(velocity_bias),
        fused=fused,
    )


# The parts of the work space: a factor for each entry of the moments, of which
# the first makes room for the update; the moments; for each group, what its
# scale is made of. LLVM makes vectors of loops whose
# arrays do not overlap; of many arrays it does not find that out, of parts of
# one array it knows.
_SIZE = TILE * GROUP_SIZE
_U = _M_FACTOR = 0
_V_FACTOR, _M, _V = _SIZE, 2 * _SIZE, 3 * _SIZE
_M_GROUP, _V_GROUP = 4 * _SIZE, 4 * _SIZE + TILE


@jit
def run(first, last, a_row, columns, arrays, numbers, noise, rounding):
    """Go through tiles; `a_row` is how many there are in a row."""
    work = np.empty(4 * _SIZE + 2 * TILE, _F)
    groups_a_row = (columns + GROUP_SIZE - 1) // GROUP_SIZE
    for tile in range(first, last):
        row = tile // a_row
        column = (tile - row * a_row) * _SIZE
        start = row * columns + column
        size = min(_SIZE, columns - column)
        group = row * groups_a_row + column // GROUP_SIZE
        count = max(1, (size + GROUP_SIZE - 1) // GROUP_SIZE)
        m_scales = arrays.m_scale[group : group + count]
        v_scales = arrays.v_scale[group : group + count]
        _decode_scales(m_scales, v_scales, work)
        _fill_groups(work, count)
        end = start + size
        m_codes = arrays.m_codes[start:end]
        v_codes = arrays.v_codes[start:end]
        _update(arrays.gradient[start:end], m_codes, v_codes, work, numbers)
        parameter = arrays.parameter[start:end]
        move(parameter, arrays.correction, work, start, rounding)
        # The last group of a row may be short.
        for i in range(size, count * GROUP_SIZE):
            work[_M + i] = work[_V + i] = _ZERO
        for j in range(count):
            work[_M_GROUP + j] = largest_of_group(work, _M // GROUP_SIZE + j)
            work[_V_GROUP + j] = largest_of_group(work, _V // GROUP_SIZE + j)
        places = arrays.places[group : group + count]
        key = np.uint32(group + noise) if places.size == 0 else noise
        _encode_scales(m_scales, v_scales, work, np.uint32(key), places)
        _fill_groups(work, count)
        _encode(m_codes, v_codes, work)


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
def _encode_scales(m_scale, v_scale, work, noise, places):
    for j in range(m_scale.size):
        place = np.uint32(places[j]) if places.size else np.uint32(j)
        x = _root_of_scale(work[_M_GROUP + j])
        scale = round_to_float16(x, _TO_NEAREST)
        m_scale[j] = scale
        work[_M_GROUP + j] = _inverse(scale)
        x = _root_of_scale(work[_V_GROUP + j])
        bits = mix(np.uint32(noise + place))
        scale = round_to_float16(x, np.int32(bits >> np.uint32(8)))
        v_scale[j] = scale
        work[_V_GROUP + j] = _inverse(scale)


@jit
def _update(gradient, m_codes, v_codes, work, numbers):
    """Compute both moments, the second as its root, and the update."""
    b_1, c_1, b_2, c_2 = numbers.b_1, numbers.c_1, numbers.b_2, numbers.c_2
    for i in range(gradient.size):
        g = to_float32(gradient[i])
        g = g if abs(g) < _LARGEST_GRADIENT else _ZERO
        y = _F(m_codes[i]) * _F(1 / 127)
        m = work[_M_FACTOR + i] * (y / (_F(2) - abs(y)))
        y = _F(v_codes[i]) * work[_V_FACTOR + i]
        v = y * y
        if numbers.fused:
            m = fused_multiply_add(b_1, m, c_1 * g)
            v = fused_multiply_add(c_2 * g, g, b_2 * v)
        else:
            m = b_1 * m + c_1 * g
            v = b_2 * v + c_2 * g * g
        v = np.sqrt(v)
        work[_M + i] = m
        work[_V + i] = v
        if numbers.fused:
            root = fused_multiply_add(v, numbers.root, numbers.epsilon)
        else:
            root = v * numbers.root + numbers.epsilon
        work[_U + i] = m / (root * numbers.bias)


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
