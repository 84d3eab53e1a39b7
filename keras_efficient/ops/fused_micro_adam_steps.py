import functools
import math

import numpy as np
from keras import ops

from keras_efficient.kernels.cpu import traits
from keras_efficient.kernels.ffi.tensors import as_matrix
from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.fused_steps import FLOATS
from keras_efficient.ops.fused_steps import fused_steps

DTYPES = {
    "parameter": FLOATS,
    "indices": ("uint8", "int16"),
    "values": FLOATS,
    "written": ("int32",),
    "codes": ("uint8",),
    "low": ("bfloat16",),
    "high": ("bfloat16",),
    "velocity": ("float32",),
    "gradient": FLOATS,
}


def fused_micro_adam_steps(
    parameters,
    gradients,
    states,
    learning_rate,
    step,
    seeds,
    block_size=256,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    alpha=0.4,
    rounding="stochastic",
    bias_correction="window",
    biases=None,
):
    """Do `micro_adam_step`, and the steps it computes, in a kernel.

    For each tensor the same as the portable form

    ```
    u, state = micro_adam_step(gradient, state, step)
    parameter = parameter - learning_rate * u
    ```

    but in one pass over the memory, without temporaries. On PyTorch the
    tensors that are given are overwritten and returned, those of all
    parameters in one call of the kernel.

    Of entries of equal magnitude the first one is chosen, as XLA does; other
    frameworks take any in the portable form.

    Args:
        parameters: List of tensors.
        gradients: List of tensors of the shapes of the parameters.
        states: List of `MicroAdamState`.
        learning_rate: Float or float32 scalar tensor.
        step: Integer or int32 scalar tensor. See `micro_adam_step`, as for
            `block_size` to `bias_correction`.
        seeds: List of integers, different for each tensor.
        block_size: Integer.
        beta_1: Float.
        beta_2: Float.
        epsilon: Float.
        alpha: Float.
        rounding: String.
        bias_correction: String.
        biases: Pair of scalar tensors, `1 - beta_1^step` and
            `1 - beta_2^step`. Defaults to `None`: computed here.

    Returns:
        List with `(parameter, indices, values, written, codes, low, high,
        velocity)` for each tensor, or `None` where no kernel serves it.
    """
    rows = [(x, *s, g) for x, s, g in zip(parameters, states, gradients)]
    options = (beta_1, 1 - beta_1, beta_2, 1 - beta_2)
    options = np.array((*options, epsilon, alpha, 1 - alpha), "float32")
    biases = biases or adam_biases(step, beta_1, beta_2)
    numbers = learning_rate, *biases, step, options
    choices = rounding == "stochastic", bias_correction == "window"
    shared = numbers, block_size, choices
    step_many = functools.partial(_step_many, *shared)
    return fused_steps(
        rows, seeds, step_many, functools.partial(_step, *shared)
    )


def _step_many(numbers, block_size, choices, rows, seeds):
    from keras_efficient.kernels.torch_table import Row
    from keras_efficient.kernels.torch_table import step_many

    described = []
    for row, seed in zip(rows, seeds):
        window, _, k = row[1].shape
        layout = window, k, block_size, 2 * row[4].shape[1]
        size, shapes = _shapes(row[0].shape, *layout)
        if size:
            described.append(Row(row, shapes, (size, seed), layout))
    arguments = *numbers, *choices
    served = iter(step_many(described, DTYPES, _find_kernel, *arguments))
    return [
        row[:-1] if row[0].numel() and next(served) else None for row in rows
    ]


# Not before they are needed: they import their compilers.
def _find_kernel(name, layout):
    if name == "triton":
        from keras_efficient.kernels.gpu.micro_adam import micro_adam_many
        from keras_efficient.kernels.gpu.micro_adam import serves

        if not serves(*layout):
            return None
    else:
        from keras_efficient.kernels.cpu.micro_adam_many import micro_adam_many
    return functools.partial(micro_adam_many, layout)


@functools.lru_cache(maxsize=4096)
def _shapes(shape, window, k, block_size, bucket_size):
    """Return the size of a parameter, and the shapes of its row."""
    size = math.prod(shape)
    blocks, buckets = (
        math.ceil(size / block_size),
        math.ceil(size / bucket_size),
    )
    entries, bounds = (window, blocks, k), (buckets, 1)
    codes = (buckets, bucket_size // 2)
    state = entries, entries, (window,), codes, bounds, bounds, (blocks, 1)
    return size, (shape, *state, shape)


def _step(numbers, block_size, choices, row, seed):
    if not math.prod(row[0].shape):
        return None
    from keras_efficient.kernels.cpu.micro_adam import micro_adam

    parameter, *state, gradient = row
    # XLA would copy a matrix that is overwritten as a vector.
    rows = math.prod(parameter.shape[:-1])
    results = micro_adam(
        as_matrix(parameter, rows),
        *state,
        as_matrix(gradient, rows),
        *numbers,
        block_size,
        seed,
        *choices,
        traits.multiplies_and_adds_at_once(row),
    )
    return ops.reshape(results[0], parameter.shape), *results[1:]
