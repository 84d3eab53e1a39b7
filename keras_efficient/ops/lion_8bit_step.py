from keras import ops

from keras_efficient.ops.adam_step import finite_gradient
from keras_efficient.ops.quantize_8bit import dequantize_8bit
from keras_efficient.ops.quantize_8bit import quantize_8bit


def lion_8bit_step(gradient, codes, scale, beta_1=0.9, beta_2=0.99):
    """Compute one step of Lion whose momentum takes one byte an entry.

    ```
    m = dequantize(codes, scale)
    u = sign(beta_1 m + (1 - beta_1) g)
    codes, scale = quantize(beta_2 m + (1 - beta_2) g)
    ```

    Args:
        gradient: Tensor g of any shape. Entries that are not finite, or not
            below 1e18, count as 0.
        codes: int8 tensor of the same shape, all zeros at first.
        scale: float16 tensor; for its shape see `quantize_8bit`.
        beta_1: Float. Weight of m in the update. Defaults to `0.9`.
        beta_2: Float. Decay of m. Defaults to `0.99`.

    Returns:
        `(u, codes, scale)`, u in float32. The caller subtracts
        `learning_rate * u`.

    Reference:
        - [Chen et al., 2023](https://arxiv.org/abs/2302.06675)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """
    m = dequantize_8bit(codes, scale)
    u, m = lion_step(gradient, m, beta_1=beta_1, beta_2=beta_2)
    return u, *quantize_8bit(m)


def lion_step(gradient, momentum, beta_1, beta_2):
    """Compute the same with a momentum in float32."""
    g = finite_gradient(gradient)
    u = ops.sign(beta_1 * momentum + (1 - beta_1) * g)
    return u, beta_2 * momentum + (1 - beta_2) * g
