import math

import keras
import numpy as np
from keras import ops

from keras_efficient.kernels import policy
from keras_efficient.kernels import traits
from keras_efficient.kernels.tensors import as_matrix
from keras_efficient.ops.adam_step import adam_biases

DTYPES = ("float32", "bfloat16")


def fused_micro_adam_step(
    parameter,
    gradient,
    state,
    learning_rate,
    step,
    block_size=256,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    alpha=0.4,
    rounding="stochastic",
    bias_correction="window",
    seed=0,
    biases=None,
):
    """Do `micro_adam_step`, and the step it computes, in a kernel.

    The same as the portable form

    ```
    u, state = micro_adam_step(gradient, state, step)
    parameter = parameter - learning_rate * u
    ```

    but in one pass over the memory, without temporaries. On PyTorch the
    tensors that are given are overwritten and returned.

    Of entries of equal magnitude the first one is chosen, as XLA does; other
    frameworks take any in the portable form.

    Args:
        parameter: Tensor.
        gradient: Tensor of the shape of the parameter.
        state: `MicroAdamState`.
        learning_rate: Float or float32 scalar tensor.
        step: Integer or int32 scalar tensor. See `micro_adam_step`,
            as for `block_size` to `seed`.
        block_size: Integer.
        beta_1: Float.
        beta_2: Float.
        epsilon: Float.
        alpha: Float.
        rounding: String.
        bias_correction: String.
        seed: Integer.
        biases: Pair of scalar tensors, `1 - beta_1^step` and
            `1 - beta_2^step`. Defaults to `None`: computed here.

    Returns:
        `(parameter, indices, values, written, codes, low, high, velocity)`,
        or `None` where no kernel serves these tensors.
    """
    tensors = (parameter, *state)
    kernel = _choose_kernel(*tensors, gradient)
    if kernel is None:
        return None
    # Not before they are needed: they import their compilers.
    if kernel == "triton":
        from keras_efficient.kernels.triton_micro_adam import micro_adam
        from keras_efficient.kernels.triton_micro_adam import serves

        if not serves(state.indices, state.codes, block_size):
            return None
    else:
        from keras_efficient.kernels.numba_micro_adam import micro_adam

    # XLA would copy a matrix that is overwritten as a vector.
    rows = math.prod(parameter.shape[:-1])
    betas = (beta_1, 1 - beta_1, beta_2, 1 - beta_2)
    results = micro_adam(
        as_matrix(parameter, rows),
        *state,
        as_matrix(gradient, rows),
        learning_rate,
        *(biases or adam_biases(step, beta_1, beta_2)),
        step,
        np.array((*betas, epsilon, alpha, 1 - alpha), "float32"),
        block_size,
        seed,
        rounding == "stochastic",
        bias_correction == "window",
        traits.multiplies_and_adds_at_once(tensors),
    )
    if traits.overwrites(tensors):
        return tensors
    return ops.reshape(results[0], parameter.shape), *results[1:]


def _choose_kernel(parameter, *tensors):
    # The partitioner of XLA cannot divide a kernel.
    if keras.distribution.distribution() is not None:
        return None
    if not math.prod(parameter.shape):
        return None
    dtypes = (x.dtype for x in (parameter, tensors[-1]))
    if any(keras.backend.standardize_dtype(x) not in DTYPES for x in dtypes):
        return None
    if not all(map(traits.is_contiguous, (parameter, *tensors[:-1]))):
        return None
    return policy.choose(parameter, *tensors)
