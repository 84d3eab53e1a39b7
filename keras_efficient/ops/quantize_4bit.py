from keras import ops

from keras_efficient.ops.round_to_bfloat16 import round_to_bfloat16

# bfloat16 rounds by at most one part in 2^8 + 1. Bounds that are wider by 2^-8
# still enclose every entry after rounding: (1 + 2^-8) (1 - 1 / 257) = 1.
BOUND_MARGIN = 2.0**-8
SMALLEST_UNIT = 2.0**-126


def quantize_4bit(x, noise=0.5):
    """Round each bucket to 16 equal steps between its minimum and maximum.

    ```
    unit = (high - low) / 15        code = floor((x - low) / unit + noise)
    ```

    With `noise = 0.5` this rounds to the nearest step. With noise drawn
    uniformly from [0, 1) the expected value of the decoded tensor is `x`:
    what is smaller than a step survives on average.

    Args:
        x: float32 tensor of shape `(buckets, bucket_size)`, `bucket_size`
            even, of magnitudes up to 1e38.
        noise: Float or tensor of the shape of `x`. Defaults to `0.5`.

    Returns:
        `(codes, low, high)`: uint8 codes of shape
        `(buckets, bucket_size // 2)`, the code of entry `i` in the upper
        four bits and that of entry `i + bucket_size // 2` in the lower ones,
        and the bounds in bfloat16, of shape `(buckets, 1)`.

    Example:

    ```python
    x = keras.random.normal((4, 64))
    codes, low, high = keras_efficient.ops.quantize_4bit(x)
    x_rounded = keras_efficient.ops.dequantize_4bit(codes, low, high)
    ```
    """
    low = ops.min(x, axis=-1, keepdims=True)
    high = ops.max(x, axis=-1, keepdims=True)
    low = round_to_bfloat16(low - BOUND_MARGIN * ops.abs(low))
    high = round_to_bfloat16(high + BOUND_MARGIN * ops.abs(high))
    unit = _unit(low, high)
    is_flat = unit < SMALLEST_UNIT
    scale = ops.where(is_flat, 0.0, 1.0 / ops.where(is_flat, 1.0, unit))
    codes = ops.clip(ops.floor((x - low) * scale + noise), 0, 15)
    first, second = ops.split(ops.cast(codes, "int32"), 2, axis=-1)
    codes = ops.cast(first * 16 + second, "uint8")
    return codes, ops.cast(low, "bfloat16"), ops.cast(high, "bfloat16")


def dequantize_4bit(codes, low, high):
    """Decode what `quantize_4bit` returned.

    Args:
        codes: uint8 tensor of shape `(buckets, bucket_size // 2)`.
        low: bfloat16 tensor of shape `(buckets, 1)`.
        high: bfloat16 tensor of shape `(buckets, 1)`.

    Returns:
        float32 tensor of shape `(buckets, bucket_size)`: `low + code * unit`.
    """
    codes = ops.cast(codes, "int32")
    upper, lower = ops.right_shift(codes, 4), ops.bitwise_and(codes, 15)
    steps = ops.concatenate([upper, lower], axis=-1)
    low, high = ops.cast(low, "float32"), ops.cast(high, "float32")
    return low + ops.cast(steps, "float32") * _unit(low, high)


def _unit(low, high):
    # XLA divides by a constant in this way; so the others give the same bits.
    return (high - low) * (1 / 15)
