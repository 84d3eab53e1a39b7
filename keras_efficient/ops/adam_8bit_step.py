from keras import ops

from keras_efficient.ops.adam_8bit_arguments import Adam8bitState
from keras_efficient.ops.adam_step import adam_step
from keras_efficient.ops.quantize_8bit import dequantize_8bit
from keras_efficient.ops.quantize_8bit import quantize_8bit
from keras_efficient.ops.uniform_noise import uniform_noise


def adam_8bit_step(
    gradient,
    state,
    step,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    seed=0,
    noise=None,
):
    """Compute one step of Adam whose moments take one byte an entry.

    ```
    m, v = dequantize(state)
    u, m, v = adam_step(g, m, v)
    state = quantize(m), quantize(v)
    ```

    The update is computed from the moments before they are rounded. See
    `adam_step` and `quantize_8bit` for the equations.

    Deviation from the paper: the scales of v are rounded to float16 at random,
    with the right mean. At `beta_2 = 0.999` what they hold shrinks by at most
    0.00025 a step, and numbers in float16 lie 0.0005 to 0.001 apart: rounded
    to the nearest, scales would stand still while gradients get smaller.
    Codes are rounded to the nearest: at random, their errors would add up over
    the many steps that v remembers to more than the entries of small codes.

    Args:
        gradient: Tensor g of any shape. Entries that are not finite, or not
            below 1e18, count as 0.
        state: `Adam8bitState`, all zeros at first.
        step: Integer tensor t, the number of this step, counted from 1.
        beta_1: Float. Decay of m. Defaults to `0.9`.
        beta_2: Float. Decay of v. Defaults to `0.999`.
        epsilon: Float. Defaults to `1e-7`.
        seed: Integer, different for each tensor. Defaults to `0`.
        noise: Tensor in [0, 1) of the shape of the scales, in place of that
            which comes from `step` and `seed`. Defaults to `None`.

    Returns:
        `(u, state)`: the update in float32, of the shape of the gradient,
        and the new state. The caller subtracts `learning_rate * u`.

    Reference:
        - [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """
    u, m, v = adam_step(
        gradient,
        dequantize_8bit(state.momentum_codes, state.momentum_scale),
        dequantize_8bit(state.velocity_codes, state.velocity_scale),
        step,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
    )
    shape = tuple(state.velocity_scale.shape)
    if noise is None:
        noise = uniform_noise(shape, ops.cast(step, "int32"), seed)
    momentum = quantize_8bit(m)
    velocity = quantize_8bit(v, signed=False, noise=noise)
    return u, Adam8bitState(*momentum, *velocity)
