"""The step of `keras_efficient.ops.micro_adam_step` in one pass, in place."""

import math

import numba
import numpy as np

from keras_efficient.kernels.cpu.jit import jit
from keras_efficient.kernels.cpu.micro_adam_blocks import Arrays
from keras_efficient.kernels.cpu.micro_adam_blocks import make_spaces
from keras_efficient.kernels.cpu.micro_adam_blocks import step_blocks
from keras_efficient.kernels.cpu.micro_adam_numbers import Layout
from keras_efficient.kernels.cpu.micro_adam_numbers import gather
from keras_efficient.kernels.cpu.micro_adam_numbers import noise_key
from keras_efficient.kernels.cpu.micro_adam_numbers import write_row
from keras_efficient.kernels.cpu.traits import multiplies_and_adds_at_once
from keras_efficient.kernels.cpu.weights import Rounding
from keras_efficient.kernels.cpu.weights import correction_of
from keras_efficient.kernels.cpu.weights import places_of
from keras_efficient.kernels.cpu.weights import weight_noise
from keras_efficient.kernels.ffi.numba_ffi import numba_ffi
from keras_efficient.kernels.ffi.tensors import reshape

# Fewer entries are done sooner than other threads have woken up.
ENTRIES_A_PART = 2**16


def do_steps(rows, arguments):
    """Do the steps of rows, one after another.

    Args:
        rows: List of `keras_efficient.ops.dispatch.Row`.
        arguments: `MicroAdamArguments`.

    Returns:
        List with the new parameter, correction if there is one, and state of
        each row, in one tuple.
    """
    momentum_bias, velocity_bias = arguments.biases
    results = []
    for row in rows:
        shape = tuple(row.parameter.shape)
        # XLA would copy a matrix that is overwritten as a vector.
        matrix = math.prod(shape[:-1]), -1
        parameter, correction, *state = micro_adam(
            reshape(row.parameter, matrix),
            reshape(correction_of(row), (matrix[0], -1)),
            *map(_with_two_axes, row.state, (1, 1, None, 0, 0, 0, 0)),
            reshape(row.gradient, matrix),
            arguments.learning_rate,
            momentum_bias,
            velocity_bias,
            arguments.step,
            arguments.constants,
            arguments.block_size,
            row.seed,
            places_of(row),
            np.float32(row.decay),
            arguments.weight_rounding == "stochastic",
            arguments.is_stochastic,
            arguments.is_window,
            multiplies_and_adds_at_once(row.tensors),
        )
        corrections = [reshape(correction, shape) for _ in row.corrections]
        state = [reshape(x, tuple(y.shape)) for x, y in zip(state, row.state)]
        results.append((reshape(parameter, shape), *corrections, *state))
    return results


def _with_two_axes(x, first):
    """Return state whose blocks have two axes at most, from `first` on.

    For one and for two the kernel is compiled; XLA needs no copy for it.
    """
    shape = tuple(x.shape)
    if first is None or len(shape) < first + 4:
        return x
    rows = math.prod(shape[first:-2])
    return reshape(x, (*shape[:first], rows, *shape[-2:]))


@numba_ffi(
    in_place=(
        "parameter",
        "correction",
        "indices",
        "values",
        "written",
        "codes",
        "low",
        "high",
        "velocity",
    ),
    dtypes={
        "parameter": ("float32", "bfloat16"),
        "correction": "int8",
        "indices": ("uint8", "int16"),
        "values": ("float32", "bfloat16"),
        "written": "int32",
        "codes": "uint8",
        "low": "bfloat16",
        "high": "bfloat16",
        "velocity": "float32",
        "gradient": ("float32", "bfloat16"),
        "learning_rate": "float32",
        "momentum_bias": "float32",
        "velocity_bias": "float32",
        "step": "int32",
        "constants": "float32",
        "block_size": "int32",
        "seed": "int32",
        "places": "int32",
        "decay": "float32",
        "is_random": "bool",
        "is_stochastic": "bool",
        "is_window": "bool",
        "fused": "bool",
    },
    parallel=True,
)
def micro_adam(
    parameter,
    correction,
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
    constants,
    block_size,
    seed,
    places,
    decay,
    is_random,
    is_stochastic,
    is_window,
    fused,
):
    """Update a parameter and its state.

    Args:
        parameter: Array, not empty.
        correction: int8 array of the shape of the parameter, or with a last
            axis of 0 for none.
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
        constants: As in `MicroAdamArguments`.
        block_size: Integer.
        seed: int32 for the noise.
        places: int32 vector, of a shard: the places of its blocks in the whole
            parameter; empty for one after another.
        decay: Of weights in bfloat16, float32.
        is_random: Whether weights in bfloat16 are rounded at random, where
            they have no correction.
        is_stochastic: Whether rounding of the error feedback is stochastic.
        is_window: Whether the bias correction is that of the window.
        fused: Whether codes are computed with fused multiply-adds.
    """
    row, weights, sums = write_row(written, step[0], constants)
    noise = noise_key(step[0], seed[0], is_stochastic[0])
    layout = np.int64(block_size[0]), codes.shape[-1], row, noise
    entries = indices.shape[0], velocity.size, indices.shape[-1]
    arrays = (
        parameter.reshape(-1),
        correction.reshape(-1),
        indices.reshape(entries),
        values.reshape(entries),
        codes.reshape(-1),
        low.reshape(-1),
        high.reshape(-1),
        velocity.reshape(-1),
        gradient.reshape(-1),
        places,
    )
    scalars = momentum_bias[0], velocity_bias[0]
    choices = is_window[0], fused[0]
    weight_key = weight_noise(step[0], seed[0])
    rounding = learning_rate[0], decay[0], is_random[0], weight_key, fused[0]
    parts = parameter.size // ENTRIES_A_PART
    if parts <= 1:
        _step_part(
            0,
            1,
            arrays,
            weights,
            sums,
            layout,
            scalars,
            constants,
            choices,
            rounding,
        )
        return
    for part in numba.prange(parts):
        _step_part(
            part,
            parts,
            arrays,
            weights,
            sums,
            layout,
            scalars,
            constants,
            choices,
            rounding,
        )


# Parallel loops of Numba take no tuples that have names, or hold others.
@jit
def _step_part(
    part,
    parts,
    arrays,
    weights,
    sums,
    layout,
    scalars,
    constants,
    choices,
    rounding,
):
    arrays, layout = Arrays(*arrays), Layout(*layout)
    is_window, fused = choices
    numbers = gather(*scalars, constants, sums, is_window, fused)
    blocks = arrays.velocity.size
    first, last = part * blocks // parts, (part + 1) * blocks // parts
    spaces = make_spaces(layout.block_size)
    rounding = Rounding(*rounding)
    step_blocks(first, last, arrays, weights, layout, numbers, spaces, rounding)
