import math

from keras import ops

from keras_efficient.ops.adam_step import finite_gradient
from keras_efficient.ops.adam_step import one_minus_power
from keras_efficient.ops.quantize_4bit import dequantize_4bit
from keras_efficient.ops.quantize_4bit import quantize_4bit
from keras_efficient.ops.uniform_noise import uniform_noise

# Of gradient and error feedback together: far enough from the end of float32
# for the squares of sums over a column.
LARGEST_ENTRY = 1e14
# Entries of a gradient that is all smaller count as 0: the inverse of the
# largest would not be finite.
SMALLEST_ENTRY = 1e-37
# Relative to the trace. Less than the rounding errors where there is anything.
SHIFT = 1e-8
# Ten times what float32 leaves of a zero in a product of matrices.
SMALLEST_ROW = 1e-5


def ld_adam_step(
    gradient,
    state,
    step,
    beta_1=0.908,
    beta_2=0.99,
    rho=0.908,
    epsilon=1e-7,
    rounding="stochastic",
    seed=0,
):
    """Compute one step of LDAdam for one matrix.

    The moments M and S are those of the gradient in a subspace of r
    dimensions, the span of the columns of P, which follows the gradient by
    one power iteration a step. The moments move along, and what does not fit
    into the subspace is fed back, as `e`:

    ```
    a = g + e
    b = rho P M^ + (1 - rho) a      M^ = M / (1 - beta_1^(t - 1))
    P' = qr(b b^T P)                S^ = S / (1 - beta_2^(t - 1))
    T = P'^T P                      M~ = T M
    S~ = (1 - beta_2^(t - 1)) |(T * T) (S^ - M^ * M^) + (T M^) * (T M^)|
    M' = beta_1 M~ + (1 - beta_1) P'^T a
    S' = beta_2 S~ + (1 - beta_2) (P'^T a) * (P'^T a)
    u = P' (M' / (1 - beta_1^t) / (sqrt(S' / (1 - beta_2^t)) + epsilon))
    e' = a - P' P'^T a + beta_1 / (1 - beta_1) (P M - P' M~)
    ```

    for a matrix with no more rows than columns; others are transposed before
    and after. `*` is entry by entry.

    Deviations from the paper's Algorithm 1:

    - P starts at random, not from a singular value decomposition of the first
      gradient, which all later steps would have to compile, too, and which
      reached the same loss on the digits.
    - 1e-8 of the trace of `b b^T` is added to its diagonal. That changes no
      eigenvector, but keeps P where b is zero.
    - Rows of M' less than 1e-5 of the largest are left out of u. Where the
      gradient has a lower rank than r they are rounding errors, which the
      division by sqrt(S') would blow up to the size of all others.
    - `e` may be rounded to four bits.
    - Entries of the gradient that are not finite count as 0, and those of `a`
      are clipped to 1e14.

    Args:
        gradient: Tensor g of any shape and at least one entry. All its axes
            but the last are the rows of the matrix.
        state: Tuple of P, of shape `(n, r)` with n the shorter side of the
            matrix and r at most n, M and S, of shape `(r, c)` with c the
            longer side, all in float32, and of the error feedback: nothing
            for none, `e` in float32 and of the shape of the gradient, or the
            three tensors of `quantize_4bit` for its flattened entries. P has
            orthonormal columns at first; all the rest is zero.
        step: Integer tensor t, the number of this step, counted from 1.
        beta_1: Float in [0, 1). Decay of M. Defaults to `0.908`.
        beta_2: Float in [0, 1). Decay of S. Defaults to `0.99`.
        rho: Float in [0, 1), the part of the first moment in what P follows.
            Defaults to `0.908`.
        epsilon: Float. Defaults to `1e-7`.
        rounding: `"stochastic"` or `"nearest"`, for four bits. Defaults to
            `"stochastic"`.
        seed: Integer, different for each tensor. Defaults to `0`.

    Returns:
        `(u, state)`: the update in float32, of the shape of the gradient,
        and the new state. The caller subtracts `learning_rate * u`.

    Reference:
        - [Robert et al., 2024](https://arxiv.org/abs/2410.16103)
    """
    p_old, m_old, s_old, *error = state
    shape = tuple(gradient.shape)
    t = ops.cast(step, "float32")
    # At t = 1 both moments are 0, whatever they are divided by.
    is_first = t < 1.5
    c_1_old = ops.where(is_first, 1.0, one_minus_power(beta_1, t - 1))
    c_2_old = ops.where(is_first, 1.0, one_minus_power(beta_2, t - 1))
    c_1, c_2 = one_minus_power(beta_1, t), one_minus_power(beta_2, t)

    # Subspace
    a = finite_gradient(gradient) + _decode(error, shape)
    a = _short_side_first(ops.clip(a, -LARGEST_ENTRY, LARGEST_ENTRY))
    m_hat, s_hat = m_old / c_1_old, s_old / c_2_old
    b = rho * ops.matmul(p_old, m_hat) + (1 - rho) * a
    p = _power_iteration(b, p_old)
    g_low = ops.matmul(ops.transpose(p), a)

    # The old moments in the new subspace
    rotation = ops.matmul(ops.transpose(p), p_old)
    m = ops.matmul(rotation, m_old)
    s = ops.matmul(ops.square(rotation), s_hat - ops.square(m_hat))
    s = c_2_old * ops.abs(s + ops.square(ops.matmul(rotation, m_hat)))

    # Error feedback
    lost = ops.matmul(p_old, m_old) - ops.matmul(p, m)
    rest = a - ops.matmul(p, g_low) + beta_1 / (1 - beta_1) * lost
    rest = _original_shape(rest, shape)
    error = _encode(rest, error, rounding, step, seed)

    # Adam
    m = beta_1 * m + (1 - beta_1) * g_low
    s = beta_2 * s + (1 - beta_2) * ops.square(g_low)
    u = _without_rounding_errors(m) / c_1 / (ops.sqrt(s / c_2) + epsilon)
    u = _original_shape(ops.matmul(p, u), shape)
    return u, (p, m, s, *error)


def _power_iteration(b, p):
    """Return an orthonormal basis of `b b^T p`."""
    largest = ops.max(ops.abs(b))
    b = b / ops.where(largest > SMALLEST_ENTRY, largest, 1.0)
    # The trace, at least 1 because of the line above, unless b is zero.
    shift = SHIFT * ops.maximum(ops.sum(ops.square(b)), 1.0)
    p = ops.matmul(b, ops.matmul(ops.transpose(b), p)) + shift * p
    # Lengths of columns mean nothing to QR, but XLA's loses digits when they
    # differ by many orders of magnitude.
    p = p / ops.max(ops.abs(p), axis=0, keepdims=True)
    return ops.qr(p, mode="reduced")[0]


def _without_rounding_errors(m):
    """Set rows to zero that have nothing but rounding errors."""
    norms = ops.sqrt(ops.sum(ops.square(m), axis=1, keepdims=True))
    return ops.where(norms > SMALLEST_ROW * ops.max(norms), m, 0.0)


def _short_side_first(x):
    x = ops.reshape(x, (-1, x.shape[-1] if len(x.shape) else 1))
    return x if x.shape[0] <= x.shape[1] else ops.transpose(x)


def _original_shape(x, shape):
    """Undo `_short_side_first`."""
    columns = shape[-1] if shape else 1
    is_transposed = math.prod(shape) // columns > columns
    return ops.reshape(ops.transpose(x) if is_transposed else x, shape)


def _decode(error, shape):
    if not error:
        return 0.0
    if len(error) == 3:
        entries = ops.reshape(dequantize_4bit(*error), (-1,))
        return ops.reshape(entries[: math.prod(shape)], shape)
    return error[0]


def _encode(rest, error, rounding, step, seed):
    """Return `rest` in the form that `error` has."""
    if len(error) != 3:
        return [rest] if error else []
    buckets, half = error[0].shape
    rest = ops.reshape(rest, (-1,))
    rest = ops.pad(rest, [[0, buckets * 2 * half - rest.shape[0]]])
    rest = ops.reshape(rest, (buckets, 2 * half))
    noise = 0.5
    if rounding == "stochastic":
        noise = uniform_noise(rest.shape, ops.cast(step, "int32"), seed)
    return quantize_4bit(rest, noise)
