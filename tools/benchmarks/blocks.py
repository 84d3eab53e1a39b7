"""Blocks of two residual functions, and the ways to train a run of them."""

import keras
from keras import layers

import keras_efficient


class CausalAttention(layers.Layer):
    def __init__(self, width, head_width):
        super().__init__()
        self.norm = layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(
            width // head_width, head_width
        )

    def build(self, shape):
        self.norm.build(shape)
        self.attention.build(shape, shape)

    def call(self, x):
        x = self.norm(x)
        return self.attention(x, x, use_causal_mask=True)


class PlainBlock(layers.Layer):
    """x + f(x), then x + g(x)."""

    def __init__(self, f, g):
        super().__init__()
        self.f, self.g = f, g

    def build(self, shape):
        self.f.build(shape)
        self.g.build(shape)

    def call(self, x, training=None):
        x = x + self.f(x, training=training)
        return x + self.g(x, training=training)

    def compute_output_shape(self, shape):
        return shape


def attention_and_feed_forward(width, head_width):
    """Return the two functions of a block of a transformer."""
    feed_forward = [
        layers.LayerNormalization(),
        layers.Dense(4 * width, activation="gelu"),
        layers.Dense(width),
    ]
    attention = CausalAttention(width, head_width)
    return attention, keras.Sequential(feed_forward)


class Remat(layers.Layer):
    """`keras.remat` around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def build(self, shape):
        self.layer.build(shape)

    def call(self, x):
        # A new function each time: JAX would repeat the trace of a known one,
        # with the weights of then.
        return keras.remat(lambda x: self.layer(x))(x)

    def compute_output_shape(self, shape):
        return shape


def run_of_blocks(contender, pairs, x):
    """Apply blocks to a tensor of a functional model.

    Args:
        contender: "plain", "keras.remat", "Recompute", or what starts with
            "reversible".
        pairs: List of pairs of layers, the functions f and g of each block.
        x: Keras tensor.
    """
    if contender.startswith("reversible"):
        blocks = [
            keras_efficient.layers.AdditiveCoupling(f, g, axis=channel_axis())
            for f, g in pairs
        ]
        # As a loop, convolutions take XLA many times as long on a CPU.
        scan = keras.config.backend() == "jax" and len(x.shape) == 3
        run = keras_efficient.layers.ReversibleSequence(blocks, scan=scan)
        return layers.Average()(run([x, x]))
    blocks = [PlainBlock(f, g) for f, g in pairs]
    if contender == "Recompute":
        return keras_efficient.layers.Recompute(blocks)(x)
    for block in blocks:
        x = (Remat(block) if contender == "keras.remat" else block)(x)
    return x


def channel_axis():
    first = keras.config.image_data_format() == "channels_first"
    return 1 if first else -1
