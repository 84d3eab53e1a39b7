import math

import keras
from keras import ops

GROUP_SIZE = 32
# More scales than 1.2 * size / 32 would pass 2.15 bytes a parameter in Adam.
LARGEST_PADDING = 1.2
LARGEST_FLOAT16 = 65504.0
SMALLEST_NORMAL = 2.0**-14  # of float16
SMALLEST_SCALE = 2.0**-48  # the square of what is smallest in float16


def quantize_8bit(x, signed=True, noise=0.5):
    """Round to one byte an entry, in groups of 32 that share a scale.

    Signed, for a first moment, in steps that get finer towards 0:

    ```
    s = max |x|        y = 2 (x / s) / (1 + |x / s|)
    codes = floor(127 y + 0.5)        x = s y / (2 - |y|)
    ```

    Unsigned, for a second moment, in equal steps of its root:

    ```
    r = sqrt(x)        s = max r
    codes = floor(255 r / s + 0.5)        x = (codes s / 255)^2
    ```

    A group is 32 entries in a row of the last axis, so that codes and scales
    shard as `x` does. The last group of a row is shorter where 32 does not
    divide the row. Where that would take more than 1.2 scales for 32 entries
    (rows of 33 entries, or of 10), groups run over the flattened tensor.

    Deviations from the paper:

    - `scale` holds the root of s, because float16 loses digits below 6e-5 and
      ends at 6e-8, where gradients of large models are. So s keeps three
      digits from 4e-9 to 4e9, and fewer down to 4e-15. What is smaller is lost,
      what is larger is clipped to 4e9.
    - Codes are taken from the rounded s, which is the one that decodes them.
    - Unsigned codes of what is not 0 are at least 1: a second moment that is
      lost where the first is not would make a step of any size.

    Args:
        x: float32 tensor of finite numbers, of any shape without `None`; not
            negative if not `signed`.
        signed: Boolean, which of the two codes. Defaults to `True`.
        noise: Float or tensor of the shape of `scale`, in [0, 1), added before
            the scale is rounded down to float16: 0.5 rounds to the nearest,
            uniform noise to the right number on average. Defaults to `0.5`.

    Returns:
        `(codes, scale)`: int8 codes, or uint8 if not `signed`, of the shape of
        `x`, and the roots of the scales in float16, of shape
        `(..., ceil(last / 32))` or `(ceil(size / 32),)`.

    Example:

    ```python
    x = keras.random.normal((4, 64))
    codes, scale = keras_efficient.ops.quantize_8bit(x)
    x_rounded = keras_efficient.ops.dequantize_8bit(codes, scale)
    ```

    Reference:
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """
    shape = tuple(x.shape)
    x = split_groups(x)
    x = x if signed else ops.sqrt(x)
    scale = ops.sqrt(ops.max(ops.abs(x), axis=-1))
    scale = _round_to_float16(ops.minimum(scale, LARGEST_FLOAT16), noise)
    s = ops.expand_dims(scale * scale, -1)
    ratio = ops.clip(x * (1 / ops.maximum(s, SMALLEST_SCALE)), -1.0, 1.0)
    if signed:
        codes = 254 * ratio / (1 + ops.abs(ratio))
    else:
        codes = ops.maximum(255 * ratio, ops.cast(x > 0, "float32"))
    codes = join_groups(ops.floor(codes + 0.5), shape)
    codes = ops.cast(codes, "int8" if signed else "uint8")
    return codes, ops.cast(scale, "float16")


def dequantize_8bit(codes, scale):
    """Decode what `quantize_8bit` returned.

    Args:
        codes: int8 or uint8 tensor of any shape.
        scale: float16 tensor, the roots of the scales of its groups.

    Returns:
        float32 tensor of the shape of `codes`.
    """
    y = split_groups(ops.cast(codes, "float32"))
    scale = ops.expand_dims(ops.cast(scale, "float32"), -1)
    s = scale * scale
    if keras.backend.standardize_dtype(codes.dtype) == "uint8":
        x = ops.square(y * (s * (1 / 255)))
    else:
        y = y * (1 / 127)
        x = s * (y / (2 - ops.abs(y)))
    return join_groups(x, tuple(codes.shape))


def scale_shape(shape):
    """Return the shape of the scales of a tensor of the given shape."""
    if is_along_last(shape):
        return (*shape[:-1], math.ceil(shape[-1] / GROUP_SIZE))
    # An empty tensor keeps one group: there is no maximum of nothing.
    return (max(1, math.ceil(math.prod(shape) / GROUP_SIZE)),)


def is_along_last(shape):
    """Return whether groups of a tensor lie in rows of its last axis."""
    if math.prod(shape) == 0 or not shape:
        return False
    padded = math.ceil(shape[-1] / GROUP_SIZE) * GROUP_SIZE
    return padded <= LARGEST_PADDING * shape[-1]


def first_group(shape, first):
    """Return which group of the whole tensor a shard begins with.

    Args:
        shape: That of the shard, which has whole rows.
        first: Place of its first entry in the whole tensor.
    """
    if len(shape) < 2 or not is_along_last(shape):
        return first // GROUP_SIZE
    return first // shape[-1] * scale_shape(shape)[-1]


def split_groups(x):
    """Turn a tensor into its groups, on a new last axis."""
    shape = tuple(x.shape)
    if not is_along_last(shape):
        x = ops.reshape(x, (math.prod(shape),))
    missing = scale_shape(shape)[-1] * GROUP_SIZE - x.shape[-1]
    if missing:
        x = ops.pad(x, [[0, 0]] * (len(x.shape) - 1) + [[0, missing]])
    return ops.reshape(x, (*scale_shape(shape), GROUP_SIZE))


def join_groups(groups, shape):
    """Undo `split_groups`."""
    row = groups.shape[-2] * GROUP_SIZE
    x = ops.reshape(groups, (*groups.shape[:-2], row))
    size = shape[-1] if is_along_last(shape) else math.prod(shape)
    return ops.reshape(x if row == size else x[..., :size], shape)


def _round_to_float16(x, noise):
    """Round float32 in [0, 65504] to numbers that float16 holds.

    As in `round_to_bfloat16`, there is no cast that XLA could leave out.
    """
    bits = ops.view(x, "int32") + ops.cast(noise * 2.0**13, "int32")
    normal = ops.view(ops.bitwise_and(bits, -(2**13)), "float32")
    subnormal = ops.floor(x * 2.0**24 + noise) * 2.0**-24
    return ops.where(x < SMALLEST_NORMAL, subnormal, normal)
