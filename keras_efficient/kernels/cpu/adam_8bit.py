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
from keras_efficient.kernels.cpu.weights import Rounding
from keras_efficient.kernels.cpu.weights import correction_of
from keras_efficient.kernels.cpu.weights import places_of
from keras_efficient.kernels.cpu.weights import weight_noise
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
        List with the new parameter, correction if there is one, and state of
        each row, in one tuple.
    """
    momentum_bias, velocity_bias = arguments.biases
    results = []
    for row in rows:
        sizes = arguments.sizes(tuple(row.parameter.shape))
        tensors = row.parameter, correction_of(row), *row.state, row.gradient
        parameter, correction, *state = adam_8bit(
            *[reshape(x, (sizes.rows, -1)) for x in tensors],
            arguments.learning_rate,
            momentum_bias,
            velocity_bias,
            arguments.step,
            arguments.constants,
            row.seed,
            places_of(row),
            np.float32(row.decay),
            arguments.weight_rounding == "stochastic",
            multiplies_and_adds_at_once(row.tensors),
        )
        new = parameter, *(correction for _ in row.corrections), *state
        shapes = [tuple(x.shape) for x in row.tensors]
        results.append(tuple(map(reshape, new, shapes)))
    return results


@numba_ffi(
    in_place=(
        "parameter",
        "correction",
        "momentum_codes",
        "momentum_scale",
        "velocity_codes",
        "velocity_scale",
    ),
    dtypes={
        "parameter": ("float32", "bfloat16"),
        "correction": "int8",
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
        "places": "int32",
        "decay": "float32",
        "is_random": "bool",
        "fused": "bool",
    },
    parallel=True,
)
def adam_8bit(
    parameter,
    correction,
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
    places,
    decay,
    is_random,
    fused,
):
    """Update a parameter and its state.

    Args:
        parameter: Array of shape (rows, columns), as are the codes and the
            gradient.
        correction: int8, of shape (rows, 0) for none.
        momentum_codes: int8.
        momentum_scale: float16 of shape (rows, ceil(columns / 32)).
        velocity_codes: uint8.
        velocity_scale: As `momentum_scale`.
        gradient: Of the parameter.
        learning_rate: Scalar, as are `momentum_bias`, which is
            1 - beta_1^step, `velocity_bias`, 1 - beta_2^step, and `step`.
        constants: As in `Adam8bitArguments`.
        seed: int32 for the noise.
        places: int32 vector, of a shard: the places of its groups in the whole
            parameter; empty for one after another.
        decay: Of weights in bfloat16, float32.
        is_random: Whether weights in bfloat16 are rounded at random, where
            they have no correction.
        fused: Whether there are fused multiply-adds.
    """
    sizes = divide(*parameter.shape, momentum_scale.size)
    noise = mix(np.uint32(step[0]) + mix(np.uint32(seed[0])))
    arrays = (
        parameter.reshape(-1),
        correction.reshape(-1),
        momentum_codes.reshape(-1),
        momentum_scale.reshape(-1),
        velocity_codes.reshape(-1),
        velocity_scale.reshape(-1),
        gradient.reshape(-1),
        places,
    )
    scalars = momentum_bias[0], velocity_bias[0]
    noises = noise, weight_noise(step[0], seed[0])
    choices = learning_rate[0], decay[0], is_random[0], fused[0]
    parts = parameter.size // ENTRIES_A_PART
    if parts <= 1:
        _run_part(0, 1, sizes, arrays, scalars, constants, choices, noises)
        return
    for part in numba.prange(parts):
        _run_part(
            part, parts, sizes, arrays, scalars, constants, choices, noises
        )


# Parallel loops of Numba take no tuples that have names.
@jit
def _run_part(part, parts, sizes, arrays, scalars, constants, choices, noises):
    tiles, a_row, columns = sizes
    rate, decay, is_random, fused = choices
    numbers = gather(*scalars, constants, fused)
    rounding = Rounding(rate, decay, is_random, noises[1], fused)
    first, last = part * tiles // parts, (part + 1) * tiles // parts
    arrays = Arrays(*arrays)
    run(first, last, a_row, columns, arrays, numbers, noises[0], rounding)
