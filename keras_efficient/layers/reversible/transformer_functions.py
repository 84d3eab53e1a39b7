"""What a reversible transformer block adds to its streams.

These layers normalize their input and have no skip connection of their own:
the streams are the skip connections.
"""

import keras
from keras import layers
from keras import ops

from keras_efficient.layers.adaptation.pooling_mixer import PoolingMixer
from keras_efficient.layers.reversible.normalized import Normalized


class SelfAttention(Normalized):
    """Attend from each position to all, or to those before it.

    `keras.layers.MultiHeadAttention` and `GroupQueryAttention` hide their
    heads, which rotary positions and a cache have to reach. The attention
    itself is `keras.ops.dot_product_attention`, which chooses the kernel.

    Call arguments:
        x: Tensor of shape `(batch, length, width)`.
        mask: Boolean tensor, true where positions may be attended to, of
            shape `(batch, length)` or `(batch, length, length)`.
        cache: Keys and values of earlier calls, a tensor of shape
            `(batch, 2, cache length, key-value heads, head size)`.
        index: Integer, the place of `x` in the sequence, with a cache.
    """

    def __init__(
        self,
        num_heads,
        num_key_value_heads,
        use_rope,
        is_causal,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.use_rope = use_rope
        self.is_causal = is_causal

    def build(self, x_shape):
        width = x_shape[-1]
        size = head_size(self, width)
        if self.use_rope and size % 2:
            raise ValueError(
                "Rotary positions turn pairs of entries, so heads must be of "
                f"even size. Received: width={width}, "
                f"num_heads={self.num_heads}, which is {size} a head."
            )
        groups = size * self.num_key_value_heads
        super().build(x_shape)
        policy = self.dtype_policy
        self.query = layers.Dense(width, dtype=policy, name="query")
        self.key = layers.Dense(groups, dtype=policy, name="key")
        self.value = layers.Dense(groups, dtype=policy, name="value")
        self.projection = layers.Dense(width, dtype=policy, name="projection")
        for layer in (self.query, self.key, self.value):
            layer.build(x_shape)
        self.projection.build(x_shape)

    def call(self, x, mask=None, cache=None, index=0, training=None):
        x = self.norm(x)
        query, key, value = (
            split_heads(dense(x), heads)
            for dense, heads in (
                (self.query, self.num_heads),
                (self.key, self.num_key_value_heads),
                (self.value, self.num_key_value_heads),
            )
        )
        if self.use_rope:
            query, key = rotate(query, index), rotate(key, index)
        if mask is not None:
            mask = ops.cast(mask, "bool")
            padding = len(mask.shape) == 2
            mask = mask[:, None, None] if padding else mask[:, None]
        if cache is not None:
            cache = put(cache, ops.stack([key, value], axis=1), index)
            key, value = cache[:, 0], cache[:, 1]
            mask = seen(query, key, index)
        if self.num_key_value_heads == 1:  # not shared on TensorFlow
            key = ops.repeat(key, self.num_heads, axis=2)
            value = ops.repeat(value, self.num_heads, axis=2)
        y = ops.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            is_causal=self.is_causal and cache is None,
            flash_attention=keras.config.is_flash_attention_enabled(),
        )
        y = ops.reshape(y, ops.shape(x))
        y = self.finish(self.projection(y), training)
        return y if cache is None else (y, cache)

    def compute_output_shape(self, x_shape):
        return x_shape


class CrossAttention(Normalized):
    """Attend to the output of an encoder, the `context`.

    Call arguments:
        x: Tensor of shape `(batch, length, width)`.
        context: Tensor of shape `(batch, source length, source width)`, or a
            list of it and its padding mask, `(batch, source length)`.
    """

    def __init__(self, num_heads, num_key_value_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads

    def build(self, x_shape, context_shape=None):
        if context_shape is None:
            raise ValueError(
                "A block with `cross_attention=True` needs the output of an "
                "encoder: `block(x, context=encoded)`, or with its padding "
                "mask `context=[encoded, mask]`. Received: context=None"
            )
        source = context_shape
        if isinstance(source[0], (list, tuple)):
            source = source[0]
        super().build(x_shape)
        policy = self.dtype_policy
        self.attention = layers.GroupQueryAttention(
            head_size(self, x_shape[-1]),
            self.num_heads,
            self.num_key_value_heads,
            dtype=policy,
        )
        self.attention.build(x_shape, source)

    def call(self, x, context=None, training=None):
        mask = None
        if isinstance(context, (list, tuple)):
            context, mask = context
            mask = ops.cast(mask, "bool")[:, None]
        y = self.attention(self.norm(x), context, attention_mask=mask)
        return self.finish(y, training)


class PoolingFunction(Normalized):
    """Mix a sequence that is a grid of patches by maxima over windows.

    Call arguments:
        x: Tensor of shape `(batch, rows * columns, width)`.
    """

    def __init__(self, grid, **kwargs):
        super().__init__(**kwargs)
        self.grid = grid

    def build(self, x_shape):
        super().build(x_shape)
        rows, columns = self.grid
        if x_shape[1] != rows * columns:
            raise ValueError(
                "The sequence must have one patch for each place of the grid. "
                f"Received: grid={self.grid}, a sequence of shape {x_shape}"
            )
        self.mixer = PoolingMixer(
            data_format="channels_last", dtype=self.dtype_policy, name="mixer"
        )
        self.mixer.build((None, rows, columns, x_shape[-1]))

    def call(self, x, training=None):
        y = self.norm(x)
        y = ops.reshape(y, (-1, *self.grid, x.shape[-1]))
        y = ops.reshape(self.mixer(y), ops.shape(x))
        return self.finish(y, training)

    def compute_output_shape(self, x_shape):
        return x_shape


class FeedForward(Normalized):
    """Apply two dense layers, the activation between them."""

    def __init__(self, intermediate_dim, activation, **kwargs):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = activation

    def build(self, x_shape):
        super().build(x_shape)
        policy = self.dtype_policy
        self.expansion = layers.Dense(
            self.intermediate_dim, self.activation, dtype=policy
        )
        self.projection = layers.Dense(x_shape[-1], dtype=policy)
        self.expansion.build(x_shape)
        self.projection.build((*x_shape[:-1], self.intermediate_dim))

    def call(self, x, training=None):
        y = self.projection(self.expansion(self.norm(x)))
        return self.finish(y, training)

    def compute_output_shape(self, x_shape):
        return x_shape


def head_size(layer, width):
    if width is None or width % layer.num_heads:
        raise ValueError(
            "The width of a stream must be a multiple of `num_heads`. "
            f"Received: width={width}, num_heads={layer.num_heads}. (One "
            "tensor is split into two streams of half its width.)"
        )
    return width // layer.num_heads


def split_heads(x, heads):
    batch, length, width = ops.shape(x)
    return ops.reshape(x, (batch, length, heads, width // heads))


def rotate(x, index=0):
    """Turn pairs of entries by angles proportional to their position.

    Pair i of a head of size d turns by `position / 10000 ** (2 i / d)`;
    entry i of the first half is paired with entry i of the second.

    Args:
        x: Tensor of shape `(batch, length, heads, head size)`.
        index: Integer, the position of the first entry of the sequence.
    """
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-ops.arange(half, dtype="float32") / half)
    position = ops.arange(ops.shape(x)[1], dtype="float32")
    position = position + ops.cast(index, "float32")
    angle = position[:, None, None] * frequency
    cos = ops.cast(ops.cos(angle), x.dtype)
    sin = ops.cast(ops.sin(angle), x.dtype)
    a, b = x[..., :half], x[..., half:]
    return ops.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def put(cache, entries, index):
    """Write keys and values into the cache, from place `index` on."""
    entries = ops.cast(entries, cache.dtype)
    return ops.slice_update(cache, (0, 0, index, 0, 0), entries)


def seen(query, key, index):
    """Return the mask by which query `index + t` sees the keys up to it."""
    at = index + ops.arange(ops.shape(query)[1], dtype="int32")
    of = ops.arange(ops.shape(key)[1], dtype="int32")
    return (of <= at[:, None])[None, None]
