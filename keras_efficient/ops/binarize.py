import functools

from keras import ops

# Where ReSTE's derivative begins and ends; it is a line inside.
NEAR, FAR = 0.1, 1.5


def binarize(x, estimator="ste", exponent=3.0):
    """Return 1 where `x >= 0`, else -1, with a gradient all the same.

    It makes binary activations and weights that can be trained; nothing is
    stored or computed in one bit.

    ```
    identity     dx = dy
    ste          dx = dy where |x| <= 1, else 0
    polynomial   dx = max(0, 2 - 2 |x|) dy
    reste        dx = (1 / o) |x|^((1 - o) / o) dy where 0.1 < |x| <= 1.5,
                 0.1^(1 / o) / 0.1 dy inside, 0 outside
    ```

    The value is exact: `f(x) + (g(x) - g(x))` with gradients through the first
    `g(x)` alone, whose derivative is that above.

    Args:
        x: Tensor of floats.
        estimator: One of the names above. Defaults to `"ste"`.
        exponent: Float or tensor, o of `"reste"`: 1 is the identity, the
            larger, the nearer to a step. Defaults to `3.0`.

    Returns:
        Tensor of the shape and dtype of `x`.

    Raises:
        ValueError: `estimator` is none of these.

    Example:

    ```python
    layer = keras.layers.Activation(keras_efficient.ops.binarize)
    ```

    Reference:
        - [Bengio et al., 2013](https://arxiv.org/abs/1308.3432) (`"ste"`)
        - [Liu et al., 2018](https://arxiv.org/abs/1808.00278)
          (`"polynomial"`)
        - [Wu et al., 2023](https://arxiv.org/abs/2308.06689) (`"reste"`)
    """
    if estimator not in SURROGATES:
        raise ValueError(
            f"`estimator` must be one of {list(SURROGATES)}. Received: "
            f"estimator={estimator!r}"
        )
    x = ops.convert_to_tensor(x)
    surrogate = SURROGATES[estimator]
    if estimator == "reste":
        surrogate = functools.partial(surrogate, exponent=exponent)
    one = ops.ones_like(x)
    value = ops.stop_gradient(ops.where(x >= 0, one, -one))
    y = surrogate(x)
    return value + (y - ops.stop_gradient(y))


def _clipped(x):
    return ops.clip(x, -1.0, 1.0)


def _parabola(x):
    x = ops.clip(x, -1.0, 1.0)
    return 2.0 * x - x * ops.abs(x)


def _power(x, exponent):
    exponent = ops.cast(exponent, x.dtype)
    size = ops.abs(x)
    # Away from 0, where the derivative of the root has no bound.
    root = ops.power(ops.clip(size, NEAR, FAR), 1.0 / exponent)
    near = ops.power(ops.cast(NEAR, x.dtype), 1.0 / exponent) / NEAR
    return ops.where(size <= NEAR, near * x, ops.sign(x) * root)


SURROGATES = {
    "identity": lambda x: x,
    "ste": _clipped,
    "polynomial": _parabola,
    "reste": _power,
}
