"""The step of `keras_efficient.ops.adam_8bit_step` in one pass, on CUDA."""

import warnings

import numpy as np
import torch
import triton
import triton.language as tl

from keras_efficient.kernels.ffi.support import first_line
from keras_efficient.kernels.ffi.tensor_table import TensorTable
from keras_efficient.kernels.ffi.tensor_table import weight_columns
from keras_efficient.kernels.gpu import math as tm
from keras_efficient.kernels.gpu.math import finite_gradient
from keras_efficient.kernels.gpu.math import round_to_float16
from keras_efficient.kernels.gpu.math import uniform_noise
from keras_efficient.kernels.gpu.table import alignment_of
from keras_efficient.kernels.gpu.table import dtype_of
from keras_efficient.kernels.gpu.table import place
from keras_efficient.kernels.gpu.table import pointer
from keras_efficient.kernels.gpu.weights import load_weight
from keras_efficient.kernels.gpu.weights import rounding_of
from keras_efficient.kernels.gpu.weights import store_weight

GROUPS = 32  # of 32 entries, in a program
WARPS = 4

_LARGEST_FLOAT16 = tl.constexpr(65504.0)
_SMALLEST_SCALE = tl.constexpr(2.0**-48)


# Dynamo would trace into the table.
@torch.compiler.disable
def do_steps(rows, arguments):
    """Do the steps of rows of the same dtypes, in place.

    Args:
        rows: List of `keras_efficient.ops.dispatch.Row` on one device.
        arguments: `Adam8bitArguments`.

    Returns:
        List with the parameter, its correction if there is one, and the state
        of each row, in one tuple; `None` for rows whose launch failed after
        that of others.
    """
    tensors = TensorTable([row.tensors for row in rows])
    sizes = [arguments.sizes(tuple(row.parameter.shape)) for row in rows]
    numbers = [[*size, row.seed] for size, row in zip(sizes, rows)]
    addresses, decays = weight_columns(tensors.addresses, rows)
    table = np.column_stack([addresses, numbers, decays])
    has_entries = table[:, 7] * table[:, 8] > 0
    is_aligned = table[:, 8] % 32 == 0
    rounding = rounding_of(rows[0], arguments)
    results = [row.tensors[:-1] for row in rows]
    launched = False
    for are_aligned in (True, False):
        part = table[has_entries & (is_aligned == are_aligned)]
        if not len(part):
            continue
        try:
            _launch(part, are_aligned, tensors.likes, rounding, arguments)
        except Exception as error:
            if not launched:
                raise
            # What has stepped must not step again.
            warnings.warn(
                "A kernel of 8-bit Adam failed, and the portable form takes "
                f"its place: {first_line(error)}",
                stacklevel=2,
            )
            is_left = is_aligned == are_aligned
            results = [
                None if left else result
                for left, result in zip(is_left, results)
            ]
        launched = True
    tensors.mark_written()
    return results


def _launch(table, are_aligned, likes, rounding, arguments):
    like = likes[0]
    counts = -(-table[:, 9] // GROUPS)
    placed, rows_of_programs = place(table, counts, like)
    with tm.device_of(like):
        adam_8bit_kernel[(int(counts.sum()),)](
            placed,
            rows_of_programs,
            *tm.scalars(arguments, like),
            *map(float, arguments.constants),
            IS_ALIGNED=are_aligned,
            GROUPS=GROUPS,
            COLUMNS=placed.shape[1],
            PARAMETER=dtype_of(like),
            GRADIENT=dtype_of(likes[-1]),
            ROUNDING=rounding,
            ALIGNMENT=alignment_of(table[:, :7]),
            num_warps=WARPS,
            **tm.EXACT,
        )


@triton.jit
def adam_8bit_kernel(
    table,
    rows_of_programs,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    b_1,
    c_1,
    b_2,
    c_2,
    epsilon,
    IS_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARAMETER: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROUNDING: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    program = tl.program_id(0)
    tensor = table + tl.load(rows_of_programs + program) * COLUMNS
    parameter = pointer(tensor, 0, PARAMETER, ALIGNMENT)
    correction = pointer(tensor, 1, tl.int8, ALIGNMENT)
    m_codes = pointer(tensor, 2, tl.int8, ALIGNMENT)
    m_scale = pointer(tensor, 3, tl.float16, ALIGNMENT)
    v_codes = pointer(tensor, 4, tl.uint8, ALIGNMENT)
    v_scale = pointer(tensor, 5, tl.float16, ALIGNMENT)
    gradient = pointer(tensor, 6, GRADIENT, ALIGNMENT)
    groups = tl.load(tensor + 9).to(tl.int32)
    seed = tl.load(tensor + 10).to(tl.int32)
    first = (program - tl.load(tensor + COLUMNS - 1)).to(tl.int32)

    group = first * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    exists = group < groups
    if IS_ALIGNED:
        place = group.to(tl.int64) * 32 + lane
        mask = exists & (lane < 32)
    else:
        columns = tl.load(tensor + 8).to(tl.int32)
        groups_a_row = groups // tl.load(tensor + 7).to(tl.int32)
        row = group // groups_a_row
        column = (group - row * groups_a_row) * 32 + lane
        place = row.to(tl.int64) * columns + column
        mask = exists & (column < columns)

    g = finite_gradient(tl.load(gradient + place, mask, 0.0))
    scale = tl.load(m_scale + group, exists, 0.0).to(tl.float32)
    y = tl.load(m_codes + place, mask, 0).to(tl.float32) * (1 / 127)
    m = scale * scale * tl.div_rn(y, 2 - tl.abs(y))
    scale = tl.load(v_scale + group, exists, 0.0).to(tl.float32)
    y = tl.load(v_codes + place, mask, 0).to(tl.float32)
    y = y * (scale * scale * (1 / 255))
    m = b_1 * m + c_1 * g
    v = tl.sqrt_rn(b_2 * (y * y) + c_2 * g * g)

    p = load_weight(parameter, correction, place, mask, ROUNDING)
    root = tl.sqrt_rn(tl.load(velocity_bias))
    root = tl.div_rn(root * 0 + 1, root)
    u = tl.div_rn(m, (v * root + epsilon) * tl.load(momentum_bias))
    store_weight(
        parameter,
        correction,
        place,
        mask,
        p,
        u,
        tl.load(learning_rate),
        tensor + 11,
        tl.load(step),
        seed,
        ROUNDING,
    )

    m = tl.where(mask, m, 0.0)
    v = tl.where(mask, v, 0.0)
    half = tl.full(exists.shape, 0.5, tl.float32)
    scale = round_to_float16(_root_of_scale(m), half)
    ratio = _ratio(m, scale)
    codes = tl.floor(tl.div_rn(254 * ratio, 1 + tl.abs(ratio)) + 0.5)
    tl.store(m_codes + place, codes.to(tl.int32).to(tl.int8), mask)
    tl.store(m_scale + group, scale.to(tl.float16), exists)
    noise = uniform_noise(group.to(tl.uint32), tl.load(step), seed)
    scale = round_to_float16(_root_of_scale(v), noise)
    codes = tl.maximum(255 * _ratio(v, scale), (v > 0).to(tl.float32))
    codes = tl.floor(codes + 0.5).to(tl.int32)
    tl.store(v_codes + place, codes.to(tl.uint8), mask)
    tl.store(v_scale + group, scale.to(tl.float16), exists)


@triton.jit
def _root_of_scale(x):
    largest = tl.max(tl.abs(x), axis=1)[:, None]
    return tl.minimum(tl.sqrt_rn(largest), _LARGEST_FLOAT16)


@triton.jit
def _ratio(x, scale):
    s = tl.maximum(scale * scale, _SMALLEST_SCALE)
    x = x * tl.div_rn(tl.full(s.shape, 1.0, tl.float32), s)
    return tl.minimum(tl.maximum(x, -1.0), 1.0)
