from keras_efficient.ops.adam_step import finite_gradient
from keras_efficient.ops.quantize_8bit import dequantize_8bit
from keras_efficient.ops.quantize_8bit import quantize_8bit


def sgd_8bit_step(gradient, codes, scale, momentum=0.9, nesterov=False):
    """Compute one step of SGD whose momentum takes one byte an entry.

    ```
    m = momentum dequantize(codes, scale) + g
    u = m, or momentum m + g with nesterov
    codes, scale = quantize(m)
    ```

    Args:
        gradient: Tensor g of any shape. Entries that are not finite, or not
            below 1e18, count as 0.
        codes: int8 tensor of the same shape, all zeros at first.
        scale: float16 tensor; for its shape see `quantize_8bit`.
        momentum: Float. Decay of m. Defaults to `0.9`.
        nesterov: Boolean. Defaults to `False`.

    Returns:
        `(u, codes, scale)`, u in float32. The caller subtracts
        `learning_rate * u`.

    Reference:
        - [Sutskever et al., 2013](https://proceedings.mlr.press/v28/sutskever13.html)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """  # noqa: E501
    m = dequantize_8bit(codes, scale)
    u, m = sgd_step(gradient, m, momentum=momentum, nesterov=nesterov)
    return u, *quantize_8bit(m)


def sgd_step(gradient, velocity, momentum, nesterov):
    """Compute the same with a momentum in float32."""
    g = finite_gradient(gradient)
    m = momentum * velocity + g
    return momentum * m + g if nesterov else m, m
