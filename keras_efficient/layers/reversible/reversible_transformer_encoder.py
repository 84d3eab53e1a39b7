import keras

from keras_efficient.layers.reversible.transformer_block import TransformerBlock
from keras_efficient.layers.reversible.transformer_functions import (
    PoolingFunction,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleTransformerEncoder(TransformerBlock):
    """Transform a sequence by attention and feed-forward layers, reversibly.

    The block couples two streams of one width:

    ```
    y1 = x1 + attention(norm(x2))        x2 = y2 - feed_forward(norm(y1))
    y2 = x2 + feed_forward(norm(y1))     x1 = y1 - attention(norm(x2))
    ```

    on the left, and its inverse on the right. `feed_forward` is
    `Dense(activation)`, `Dense`; each of the two functions ends in Dropout
    (there is none on the attention scores, which kernels do not hand out).
    There is no skip connection inside of them: the streams are.

    Many blocks in a `keras_efficient.layers.ReversibleSequence` keep no more
    activations for the backward pass than one, for a third more time. A
    network of width `d` starts with `[x, x]`, two streams of width `d`, so it
    has the parameters of a plain transformer.

    Args:
        intermediate_dim: Integer, units of the inner dense layer.
        num_heads: Integer. Must divide the width of a stream.
        num_key_value_heads: Integer, a divisor of `num_heads`: the number of
            heads of keys and values, each shared by several of the queries.
            Defaults to `None`, as many as `num_heads`.
        use_rope: Boolean. Whether attention sees positions, by turning
            queries and keys (rotary positions). Without it they have to be
            part of the input. Defaults to `False`.
        dropout: Float in [0, 1). Defaults to `0.0`.
        activation: Of the inner dense layer. Defaults to `"gelu"`.
        layer_norm_epsilon: Float. Defaults to `1e-5`.
        drop_rate: Float in [0, 1), with which what a function adds to a
            sequence is dropped as a whole in training (stochastic depth); the
            rest is scaled up by `1 / (1 - drop_rate)`. Each function draws
            on its own. Defaults to `0.0`.
        normalization: `"pre"`, `"post"` or `"peri"`: whether a function
            normalizes its input, what it adds to a stream, or both (Peri-LN,
            which bounds by how much a block changes a stream). The sum itself
            is never normalized, which would not be reversible. Defaults to
            `"pre"`.
        mixer: `"attention"`, or `"max"` for a
            `keras_efficient.layers.PoolingMixer` in its place, on a grid of
            patches and without a mask. Defaults to `"attention"`.
        grid: Pair of integers, rows and columns of patches, with
            `mixer="max"`. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`. The two functions compute
            in `dtype`, such as `"mixed_bfloat16"`; the streams stay float32.

    Call arguments:
        inputs: List of two tensors of shape `(batch, length, width)`, or one
            tensor, split into two streams along its last axis.
        mask: Boolean tensor, true where positions may be attended to: a
            padding mask of shape `(batch, length)`, or of shape
            `(batch, length, length)`, queries before keys. Defaults to the
            Keras mask of the inputs, if they have one.
        training: Python bool, whether to apply Dropout.

    Returns:
        A list of two or one tensor, as the inputs, of the same shapes.

    Raises:
        ValueError: the width is not a multiple of `num_heads`, `num_heads`
            not one of `num_key_value_heads`, the streams differ in shape, or
            the grid does not fit.

    Example:

    ```python
    blocks = [
        keras_efficient.layers.ReversibleTransformerEncoder(64, num_heads=4)
        for _ in range(6)
    ]
    x = keras.random.normal((2, 10, 16))
    y1, y2 = keras_efficient.layers.ReversibleSequence(blocks)([x, x])
    ```

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
        - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)
        - [Su et al., 2021](https://arxiv.org/abs/2104.09864) (`use_rope`)
        - [Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)
          (`num_key_value_heads`)
        - [Kim et al., 2025](https://arxiv.org/abs/2502.02732)
          (`normalization="peri"`)
    """

    def __init__(
        self,
        intermediate_dim,
        num_heads,
        mixer="attention",
        grid=None,
        **kwargs,
    ):
        if mixer not in ("attention", "max"):
            raise ValueError(
                '`mixer` must be "attention" or "max". Received: '
                f"mixer={mixer!r}"
            )
        if (grid is None) == (mixer == "max"):
            raise ValueError(
                '`mixer="max"` needs `grid`, rows and columns of patches, '
                f"attention has none. Received: mixer={mixer!r}, grid={grid}"
            )
        super().__init__(intermediate_dim, num_heads, **kwargs)
        self.mixer = mixer
        self.grid = grid and tuple(grid)
        if mixer == "max":
            self.attention = PoolingFunction(
                self.grid, **self.function_options()
            )

    def get_config(self):
        return {
            **super().get_config(),
            "mixer": self.mixer,
            "grid": self.grid,
        }
