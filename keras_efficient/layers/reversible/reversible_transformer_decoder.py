import keras

from keras_efficient.layers.reversible.transformer_block import TransformerBlock
from keras_efficient.layers.reversible.transformer_functions import (
    CrossAttention,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleTransformerDecoder(TransformerBlock):
    """Transform a sequence, each position seeing those before it, reversibly.

    The block is that of
    `keras_efficient.layers.ReversibleTransformerEncoder` with a causal mask:

    ```
    y1 = x1 + attention(norm(x2))        x2 = y2 - feed_forward(norm(y1))
    y2 = x2 + feed_forward(norm(y1))     x1 = y1 - attention(norm(x2))
    ```

    With `cross_attention=True` there is a third function between the two,
    which attends to the output of an encoder. Each function adds to the
    stream that the one before it has read, so that after three of them the
    streams have changed places:

    ```
    y2 = x1 + attention(norm(x2))
    y1 = x2 + attention(norm(y2), context)
    y2 = y2 + feed_forward(norm(y1))
    ```

    Gradients flow back to the context, which all blocks of a
    `ReversibleSequence` share and which is kept once.

    Args:
        intermediate_dim: Integer, units of the inner dense layer.
        num_heads: Integer. Must divide the width of a stream.
        num_key_value_heads: Integer, a divisor of `num_heads`: the number of
            heads of keys and values. Defaults to `None`, as many as
            `num_heads`.
        use_rope: Boolean. Whether attention to the sequence itself sees
            positions (rotary positions). Defaults to `False`.
        dropout: Float in [0, 1). Defaults to `0.0`.
        activation: Of the inner dense layer. Defaults to `"gelu"`.
        layer_norm_epsilon: Float. Defaults to `1e-5`.
        drop_rate: Float in [0, 1), see the encoder. Defaults to `0.0`.
        normalization: `"pre"`, `"post"` or `"peri"`: whether a function
            normalizes its input, what it adds to a stream, or both (Peri-LN,
            which bounds by how much a block changes a stream). The sum itself
            is never normalized, which would not be reversible. Defaults to
            `"pre"`.
        cross_attention: Boolean. Defaults to `False`.
        **kwargs: Arguments of `keras.layers.Layer`. The functions compute in
            `dtype`, such as `"mixed_bfloat16"`; the streams stay float32.

    Call arguments:
        inputs: List of two tensors of shape `(batch, length, width)`, or one
            tensor, split into two streams along its last axis.
        context: With `cross_attention=True`, the output of an encoder, of
            shape `(batch, source length, source width)`, or a list of it and
            its padding mask, of shape `(batch, source length)`.
        mask: Boolean tensor of shape `(batch, length)` or
            `(batch, length, length)`, true where positions may be attended
            to; the causal mask applies besides.
        training: Python bool, whether to apply Dropout.

    Returns:
        A list of two or one tensor, as the inputs, of the same shapes.

    Raises:
        ValueError: as for the encoder, or a context is missing.

    Example:

    ```python
    block = keras_efficient.layers.ReversibleTransformerDecoder(
        64, num_heads=4, cross_attention=True
    )
    x = keras.random.normal((2, 10, 16))
    encoded = keras.random.normal((2, 7, 32))
    y1, y2 = block([x, x], context=encoded)
    ```

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
        - [Kitaev et al., 2020](https://arxiv.org/abs/2001.04451)
        - [Kim et al., 2025](https://arxiv.org/abs/2502.02732)
          (`normalization="peri"`)
    """

    is_causal = True

    def __init__(
        self, intermediate_dim, num_heads, cross_attention=False, **kwargs
    ):
        super().__init__(intermediate_dim, num_heads, **kwargs)
        self.cross_attention = None
        if cross_attention:
            self.cross_attention = CrossAttention(
                self.num_heads,
                self.num_key_value_heads,
                **self.function_options(),
            )

    def function_names(self):
        if self.cross_attention is None:
            return super().function_names()
        return ["attention", "cross_attention", "feed_forward"]

    def get_config(self):
        has = self.cross_attention is not None
        return {**super().get_config(), "cross_attention": has}
