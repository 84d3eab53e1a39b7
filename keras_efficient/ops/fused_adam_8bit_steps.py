import functools
import math

import numpy as np
from keras import ops

from keras_efficient.kernels.cpu import traits
from keras_efficient.kernels.ffi.tensors import as_matrix
from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.fused_steps import FLOATS
from keras_efficient.ops.fused_steps import fused_steps
from keras_efficient.ops.quantize_8bit import is_along_last
from keras_efficient.ops.quantize_8bit import scale_shape

DTYPES = {
    "parameter": FLOATS,
    "momentum_codes": ("int8",),
    "momentum_scale": ("float16",),
    "velocity_codes": ("uint8",),
    "velocity_scale": ("float16",),
    "gradient": FLOATS,
}


def fused_adam_8bit_steps(
    parameters,
    gradients,
    states,
    learning_rate,
    step,
    seeds,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    biases=None,
):
    """Do `adam_8bit_step`, and the steps it computes, in a kernel.

    For each tensor the same as the portable form

    ```
    u, state = adam_8bit_step(gradient, state, step)
    parameter = parameter - learning_rate * u
    ```

    but in one pass over the memory, without temporaries. On PyTorch the
    tensors that are given are overwritten and returned, those of all
    parameters in one call of the kernel.

    Codes are the same bits, as far as the framework computes each operation
    with one rounding. The root of PyTorch and the graphs of TensorFlow are
    off by a last digit here and there: one code in a million differs by 1.

    Args:
        parameters: List of tensors.
        gradients: List of tensors of the shapes of the parameters.
        states: List of `Adam8bitState`.
        learning_rate: Float or float32 scalar tensor.
        step: Integer or int32 scalar tensor. See `adam_8bit_step`, as for
            `beta_1` to `epsilon`.
        seeds: List of integers, different for each tensor.
        beta_1: Float.
        beta_2: Float.
        epsilon: Float.
        biases: Pair of scalar tensors, `1 - beta_1^step` and
            `1 - beta_2^step`. Defaults to `None`: computed here.

    Returns:
        List with `(parameter, momentum_codes, momentum_scale, velocity_codes,
        velocity_scale)` for each tensor, or `None` where no kernel serves it.
    """
    rows = [(x, *s, g) for x, s, g in zip(parameters, states, gradients)]
    options = (beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon)
    numbers = (
        learning_rate,
        *(biases or adam_biases(step, beta_1, beta_2)),
        step,
        np.array(options, "float32"),
    )
    step_many = functools.partial(_step_many, numbers)
    return fused_steps(
        rows, seeds, step_many, functools.partial(_step, numbers)
    )


def _step_many(numbers, rows, seeds):
    from keras_efficient.kernels.torch_table import Row
    from keras_efficient.kernels.torch_table import step_many

    described = []
    for row, seed in zip(rows, seeds):
        shapes, sizes = _layout(row[0].shape)
        described.append(Row(row, shapes, (*sizes, seed), ()))
    served = step_many(described, DTYPES, _find_kernel, *numbers)
    return [row[:-1] if done else None for row, done in zip(rows, served)]


# Not before they are needed: they import their compilers.
def _find_kernel(name, layout):
    if name == "triton":
        from keras_efficient.kernels.gpu.adam_8bit import adam_8bit_many
    else:
        from keras_efficient.kernels.cpu.adam_8bit_many import adam_8bit_many
    return adam_8bit_many


@functools.lru_cache(maxsize=4096)
def _layout(shape):
    """Return the shapes of a row, and rows, columns and number of groups."""
    scale = scale_shape(shape)
    rows = math.prod(shape[:-1]) if is_along_last(shape) else 1
    sizes = rows, math.prod(shape) // rows, math.prod(scale)
    return (shape, shape, scale, shape, scale, shape), sizes


def _step(numbers, row, seed):
    from keras_efficient.kernels.cpu.adam_8bit import adam_8bit

    _, (rows, _, _) = _layout(tuple(row[0].shape))
    results = adam_8bit(
        *(as_matrix(x, rows) for x in row),
        *numbers,
        seed,
        traits.multiplies_and_adds_at_once(row),
    )
    return tuple(ops.reshape(y, x.shape) for y, x in zip(results, row))
