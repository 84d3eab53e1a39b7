import math

import keras
import numpy as np
from keras import ops

from keras_efficient.kernels import policy
from keras_efficient.kernels import traits
from keras_efficient.kernels.tensors import as_matrix
from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.quantize_8bit import is_along_last

DTYPES = ("float32", "bfloat16")


def fused_adam_8bit_step(
    parameter,
    gradient,
    state,
    learning_rate,
    step,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    seed=0,
    biases=None,
):
    """Do `adam_8bit_step`, and the step it computes, in a kernel.

    The same as the portable form

    ```
    u, state = adam_8bit_step(gradient, state, step)
    parameter = parameter - learning_rate * u
    ```

    but in one pass over the memory, without temporaries. On PyTorch the
    tensors that are given are overwritten and returned.

    Codes are the same bits, as far as the framework computes each operation
    with one rounding. The root of PyTorch and the graphs of TensorFlow are
    off by a last digit here and there: one code in a million differs by 1.

    Args:
        parameter: Tensor.
        gradient: Tensor of the shape of the parameter.
        state: `Adam8bitState`.
        learning_rate: Float or float32 scalar tensor.
        step: Integer or int32 scalar tensor. See `adam_8bit_step`,
            as for `beta_1` to `seed`.
        beta_1: Float.
        beta_2: Float.
        epsilon: Float.
        seed: Integer.
        biases: Pair of scalar tensors, `1 - beta_1^step` and
            `1 - beta_2^step`. Defaults to `None`: computed here.

    Returns:
        `(parameter, momentum_codes, momentum_scale, velocity_codes,
        velocity_scale)`, or `None` where no kernel serves these tensors.
    """
    tensors = (parameter, *state)
    kernel = _choose_kernel(*tensors, gradient)
    if kernel is None:
        return None
    # Not before they are needed: they import their compilers.
    if kernel == "triton":
        from keras_efficient.kernels.triton_adam_8bit import adam_8bit
    else:
        from keras_efficient.kernels.numba_adam_8bit import adam_8bit

    shape = tuple(parameter.shape)
    rows = math.prod(shape[:-1]) if is_along_last(shape) else 1
    options = (beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon)
    results = adam_8bit(
        *(as_matrix(x, rows) for x in tensors),
        as_matrix(gradient, rows),
        learning_rate,
        *(biases or adam_biases(step, beta_1, beta_2)),
        step,
        np.array(options, "float32"),
        seed,
        traits.multiplies_and_adds_at_once(tensors),
    )
    if traits.overwrites(tensors):
        return tensors
    return tuple(
        ops.reshape(result, x.shape) for result, x in zip(results, tensors)
    )


def _choose_kernel(parameter, *tensors):
    # The partitioner of XLA cannot divide a kernel.
    if keras.distribution.distribution() is not None:
        return None
    dtypes = (x.dtype for x in (parameter, tensors[-1]))
    if any(keras.backend.standardize_dtype(x) not in DTYPES for x in dtypes):
        return None
    if not all(map(traits.is_contiguous, (parameter, *tensors[:-1]))):
        return None
    return policy.choose(parameter, *tensors)
