import math

from keras import ops

# The square of a larger gradient is not finite in float32.
LARGEST_GRADIENT = 1e18


def adam_step(
    gradient, momentum, velocity, step, beta_1=0.9, beta_2=0.999, epsilon=1e-7
):
    """Compute one step of Adam.

    ```
    m = beta_1 m + (1 - beta_1) g        m^ = m / (1 - beta_1^t)
    v = beta_2 v + (1 - beta_2) g^2      v^ = v / (1 - beta_2^t)
    u = m^ / (sqrt(v^) + epsilon)
    ```

    computed as m / ((sqrt(v) / sqrt(1 - beta_2^t) + epsilon) (1 - beta_1^t)),
    with one root an entry, which kernels need for its code, too.

    Args:
        gradient: Tensor g. Entries that are not finite, or not below 1e18,
            count as 0.
        momentum: float32 tensor m, of the same shape.
        velocity: float32 tensor v, of the same shape.
        step: Integer tensor t, the number of this step, counted from 1.
        beta_1: Float. Decay of m. Defaults to `0.9`.
        beta_2: Float. Decay of v. Defaults to `0.999`.
        epsilon: Float. Defaults to `1e-7`.

    Returns:
        `(u, m, v)` in float32. The caller subtracts `learning_rate * u`.

    Example:

    ```python
    g, zeros = keras.ops.ones(3), keras.ops.zeros(3)
    update, m, v = keras_efficient.ops.adam_step(g, zeros, zeros, step=1)
    ```

    Reference:
        - [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980)
    """
    g = finite_gradient(gradient)
    bias_1, bias_2 = adam_biases(step, beta_1, beta_2)
    m = beta_1 * momentum + (1 - beta_1) * g
    v = beta_2 * velocity + (1 - beta_2) * g * g
    root = ops.sqrt(v) * (1 / ops.sqrt(bias_2))
    return m / ((root + epsilon) * bias_1), m, v


def one_minus_power(beta, t):
    """Return 1 - beta^t for a float32 t, to all its digits.

    In the first steps the subtraction leaves four digits of float32.
    """
    return -ops.expm1(t * (math.log(beta) if beta else -math.inf))


def adam_biases(step, beta_1, beta_2):
    """Return what Adam's moments are divided by, 1 - beta^t for each."""
    t = ops.cast(step, "float32")
    return one_minus_power(beta_1, t), one_minus_power(beta_2, t)


def finite_gradient(gradient):
    """Return `gradient` in float32, with 0 for what no state may ever hold."""
    g = ops.cast(gradient, "float32")
    return ops.where(ops.abs(g) < LARGEST_GRADIENT, g, ops.zeros_like(g))
