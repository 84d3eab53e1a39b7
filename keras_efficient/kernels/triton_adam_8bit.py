"""The step of `keras_efficient.ops.adam_8bit_step` in one pass, on CUDA."""

import torch
import triton
import triton.language as tl

from keras_efficient.kernels import triton_math as tm
from keras_efficient.kernels.triton_math import finite_gradient
from keras_efficient.kernels.triton_math import round_to_float16
from keras_efficient.kernels.triton_math import subtract
from keras_efficient.kernels.triton_math import uniform_noise

GROUPS = 32  # of 32 entries, in a program
WARPS = 4

_LARGEST_FLOAT16 = tl.constexpr(65504.0)
_SMALLEST_SCALE = tl.constexpr(2.0**-48)


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
    fused=False,
):
    """Update a parameter and its state, in place.

    Args:
        parameter: Tensor of shape (rows, columns), as are the codes and the
            gradient; float32 or bfloat16. All are contiguous, but for the
            gradient, which is copied if it is not.
        momentum_codes: int8.
        momentum_scale: float16 of shape (rows, ceil(columns / 32)).
        velocity_codes: uint8.
        velocity_scale: As `momentum_scale`.
        gradient: Of the parameter.
        learning_rate: Float or scalar tensor, as are `momentum_bias`, which is
            1 - beta_1^step, `velocity_bias`, 1 - beta_2^step, and `step`.
        options: The five numbers beta_1, 1 - beta_1, beta_2, 1 - beta_2 and
            epsilon, on the host.
        seed: Integer for the noise.
        fused: What kernels for XLA need to know; PyTorch is never fused.
    """
    groups = momentum_scale.numel()
    if not parameter.numel():
        return
    numbers = [
        tm.scalar(x, dtype, parameter)
        for x, dtype in (
            (learning_rate, torch.float32),
            (momentum_bias, torch.float32),
            (velocity_bias, torch.float32),
            (step, torch.int32),
        )
    ]
    columns = parameter.shape[1]
    with tm.device_of(parameter):
        adam_8bit_kernel[(triton.cdiv(groups, GROUPS),)](
            *(parameter, momentum_codes, momentum_scale),
            *(velocity_codes, velocity_scale, gradient.contiguous()),
            *numbers,
            *map(float, options),
            int(seed),
            columns,
            momentum_scale.shape[1],
            groups,
            IS_ALIGNED=columns % 32 == 0,
            GROUPS=GROUPS,
            num_warps=WARPS,
            **tm.EXACT,
        )


@triton.jit(do_not_specialize=["seed", "columns", "groups_a_row", "groups"])
def adam_8bit_kernel(
    parameter,
    m_codes,
    m_scale,
    v_codes,
    v_scale,
    gradient,
    learning_rate,
    momentum_bias,
    velocity_bias,
    step,
    b_1,
    c_1,
    b_2,
    c_2,
    epsilon,
    seed,
    columns,
    groups_a_row,
    groups,
    IS_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    exists = group < groups
    if IS_ALIGNED:
        place = group.to(tl.int64) * 32 + lane
        mask = exists & (lane < 32)
    else:
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

    p = tl.load(parameter + place, mask, 0.0).to(tl.float32)
    rate = tl.load(learning_rate) / tl.load(momentum_bias)
    root = 1 / tl.sqrt_rn(tl.load(velocity_bias))
    dtype: tl.constexpr = parameter.dtype.element_ty
    p = subtract(p, rate * m / (v * root + epsilon), dtype)
    tl.store(parameter + place, p, mask)

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
