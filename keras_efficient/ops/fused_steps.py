import keras

from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi.tensors import framework_of

FLOATS = ("float32", "bfloat16")


def fused_steps(rows, seeds, step_many, step):
    """Do the steps of tensors in a kernel, where one serves them.

    Args:
        rows: List of tuples of tensors: a parameter, its state, its gradient.
        seeds: List of integers.
        step_many: Function of `rows` and `seeds`, for PyTorch.
        step: Function of a row and its seed, for other frameworks.

    Returns:
        List with the new value and state of each row in one tuple, or `None`
        where there is no kernel.
    """
    # The partitioner of XLA cannot divide a kernel.
    if keras.distribution.distribution() is not None:
        return [None] * len(rows)
    if framework_of([row[0] for row in rows]) == "torch":
        return step_many(rows, seeds)
    return [
        step(row, seed) if _is_served(row) else None
        for row, seed in zip(rows, seeds)
    ]


def _is_served(row):
    for x in (row[0], row[-1]):
        if keras.backend.standardize_dtype(x.dtype) not in FLOATS:
            return False
    return policy.choose(*row) is not None
