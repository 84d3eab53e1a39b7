"""The step of `keras_efficient.ops.adam_8bit_step` in one pass, in place."""

import numba
import numpy as np

from keras_efficient.kernels.cpu.adam_8bit_tiles import Arrays
from keras_efficient.kernels.cpu.adam_8bit_tiles import divide
from keras_efficient.kernels.cpu.adam_8bit_tiles import gather
from keras_efficient.kernels.cpu.adam_8bit_tiles import run
from keras_efficient.kernels.cpu.group import mix
from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.traits import multiplies_and_adds_at_once
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi
from keras_efficient.kernels.ffi.tensors import reshape

# Fewer entries are done sooner than other threads have woken up.
ENTRIES_A_PART = 2**15


def do_steps(rows, arguments):
    """Do the steps of rows, one after another.

    Args:
        rows: List of `keras_efficient.ops.dispatch.Row`.
        arguments: `Adam8bitArguments`.

    Returns:
        List with the new parameter and state of each row, in one tuple.
    """
    momentum_bias, velocity_bias = arguments.biases
    results = []
    for row in rows:
        sizes = arguments.sizes(tuple(row.parameter.shape))
        matrices = [reshape(x, (sizes.rows, -1)) for x in row.tensors]
        new = adam_8bit(
            *matrices,
            arguments.learning_rate,
            momentum_bias,
            velocity_bias,
            arguments.step,
            arguments.constants,
            row.seed,
            multiplies_and_adds_at_once(row.tensors),
        )
        shapes = arguments.shapes(tuple(row.parameter.shape))
        results.append(tuple(map(reshape, new, shapes)))
    return results


@numba_ffi(
    in_place=(
        "parameter",
        "momentum_codes",
        "momentum_scale",
        "velocity_codes",
        "velocity_scale",
    ),
    dtypes={
        "parameter": ("float32", "bfloat16"),
        "momentum_codes": "int8",
        "momentum_scale": "float16",
        "velocity_codes": "uint8",
        "velocity_scale": "float16",
        "gradient": ("float32", "bfloat16"),
        "learning_rate": "float32",
        "momentum_bias": "float32",
        "velocity_bias": "float32",
        "step": "int32",
        "constants": "float32",
        "seed": "int32",
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
    constants,
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
        constants: As in `Adam8bitArguments`.
        seed: int32 for the noise.
        fused: Whether moments are computed with fused multiply-adds.
    """
    sizes = divide(*parameter.shape, momentum_scale.size)
    noise = mix(np.uint32(step[0]) + mix(np.uint32(seed[0])))
    arrays = (
        parameter.reshape(-1),
        momentum_codes.reshape(-1),
        momentum_scale.reshape(-1),
        velocity_codes.reshape(-1),
        velocity_scale.reshape(-1),
        gradient.reshape(-1),
    )
    scalars = learning_rate[0], momentum_bias[0], velocity_bias[0]
    is_fused = fused[0]
    parts = parameter.size // ENTRIES_A_PART
    if parts <= 1:
        _run_part(0, 1, sizes, arrays, scalars, constants, is_fused, noise)
        return
    for part in numba.prange(parts):
        _run_part(
            part, parts, sizes, arrays, scalars, constants, is_fused, noise
        )


# Parallel loops of Numba take no tuples that have names.
@jit
def _run_part(part, parts, sizes, arrays, scalars, constants, fused, noise):
    tiles, a_row, columns = sizes
    numbers = gather(*scalars, constants, fused)
    first, last = part * tiles // parts, (part + 1) * tiles // parts
    run(first, last, a_row, columns, Arrays(*arrays), numbers, noise)
