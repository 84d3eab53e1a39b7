from keras import ops

from keras_efficient.ops.adam_step import finite_gradient

# Of entries in [-1, 1]. The square of a smaller norm is 0 in float32.
SMALLEST_NORM = 1e-18
# Its inverse is finite.
SMALLEST_GRADIENT = 1e-37


def sink_gd_step(gradient, iterations=5):
    """Compute one step of SinkGD for one matrix.

    Rows and columns are divided in turn by their root mean square, so that
    both end near 1. With n rows and c columns:

    ```
    repeat:  X[i, :] = sqrt(c) X[i, :] / ||X[i, :]||      for each row i
             X[:, j] = sqrt(n) X[:, j] / ||X[:, j]||      for each column j
    ```

    Columns come last and are exact; how far the rows still are from 1
    depends on `iterations`.

    Deviations from the paper, which says nothing of these: rows and columns
    of zeros are left out, and n and c count the others, because otherwise no
    matrix has both norms, and the few rows that a sparse gradient has grow by
    the square root of how few they are; entries that are not finite, or not
    below 1e18, count as 0.

    Args:
        gradient: Tensor of any shape and at least one entry. All its axes
            but the last are the rows of the matrix.
        iterations: Integer. Defaults to `5`.

    Returns:
        float32 tensor of the shape of the gradient, the mean of its squares
        1 where rows and columns are not empty. The caller subtracts a
        multiple of it.

    Example:

    ```python
    x = keras.random.normal((64, 32))
    update = keras_efficient.ops.sink_gd_step(x)
    keras.ops.mean(update**2, axis=0)  # 1 for each column
    ```

    Reference:
        - [Scetbon et al., 2025](https://arxiv.org/abs/2502.06742)
    """
    shape = tuple(gradient.shape)
    x = finite_gradient(gradient)
    x = ops.reshape(x, (-1, shape[-1] if shape else 1))
    # The scale of a row is lost in the first normalization anyway; taken out
    # before, it keeps the squares from leaving the range of float32.
    largest = ops.max(ops.abs(x), axis=1, keepdims=True)
    x = _divide(x, largest, SMALLEST_GRADIENT)
    # A loop of the backend's, because compilers unroll one of Python's.
    x = ops.fori_loop(0, iterations, _normalize_rows_and_columns, x)
    return ops.reshape(x, shape)


def _normalize_rows_and_columns(_, x):
    return _normalize(_normalize(x, axis=1), axis=0)


def _normalize(x, axis):
    """Divide by root mean squares along an axis, less its empty lines."""
    squares = ops.square(x)
    energy = ops.sum(squares, axis=axis, keepdims=True)
    lines = ops.sum(squares, axis=1 - axis, keepdims=True)
    filled = ops.cast(lines > SMALLEST_NORM**2, "float32")
    count = ops.maximum(ops.sum(filled), 1.0)
    return _divide(x, ops.sqrt(energy / count), SMALLEST_NORM)


def _divide(x, norm, smallest):
    """Divide by `norm`; where that is too small, return zeros."""
    is_filled = norm > smallest
    return ops.where(is_filled, x / ops.where(is_filled, norm, 1.0), 0.0)
