"""What encoder and decoder blocks have in common."""

import keras

from keras_efficient.layers.reversible.normalized import NORMALIZATIONS
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_sub_layer
from keras_efficient.layers.reversible.sub_layers import pair
from keras_efficient.layers.reversible.transformer_functions import FeedForward
from keras_efficient.layers.reversible.transformer_functions import (
    SelfAttention,
)


class TransformerBlock(ReversibleLayer):
    """Do half steps with a swap, one for each function of the block in turn:

    ```
    (x1, x2) <- (x2, x1 + f(x2))        inverse: (y2 - f(y1), y1)
    ```

    With attention as the first function and the feed-forward layers as the
    second this is `y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1)`.
    """

    additive = True
    is_causal = False

    def __init__(
        self,
        intermediate_dim,
        num_heads,
        num_key_value_heads=None,
        use_rope=False,
        dropout=0.0,
        activation="gelu",
        layer_norm_epsilon=1e-5,
        drop_rate=0.0,
        normalization="pre",
        **kwargs,
    ):
        # That of the functions; the streams have their own.
        self.function_policy = keras.dtype_policies.get(kwargs.get("dtype"))
        super().__init__(**kwargs)
        num_key_value_heads = num_key_value_heads or num_heads
        if num_heads % num_key_value_heads:
            raise ValueError(
                "`num_heads` must be a multiple of `num_key_value_heads`. "
                f"Received: num_heads={num_heads}, "
                f"num_key_value_heads={num_key_value_heads}"
            )
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {NORMALIZATIONS}. Received: "
                f"normalization={normalization!r}"
            )
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.use_rope = use_rope
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_rate = drop_rate
        self.normalization = normalization
        self.attention = SelfAttention(
            num_heads,
            num_key_value_heads,
            use_rope,
            self.is_causal,
            **self.function_options(),
        )
        self.feed_forward = FeedForward(
            intermediate_dim,
            self.activation,
            **self.function_options(),
        )

    def function_options(self):
        """Arguments that all functions of the block have in common."""
        return {
            "normalization": self.normalization,
            "epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
            "drop_rate": self.drop_rate,
            "dtype": self.function_policy,
        }

    def function_names(self):
        return ["attention", "feed_forward"]

    def build_sub_layers(self, shapes, shared):
        shape, _ = pair(self, shapes, equal=True)
        for name in self.function_names():
            build_sub_layer(self, name, shape, shape, shared)

    def couple(self, streams, evaluate):
        x1, x2 = streams
        for name in self.function_names():
            x1, x2 = x2, x1 + evaluate(getattr(self, name), x2)
        return x1, x2

    def uncouple(self, streams, evaluate):
        y1, y2 = streams
        for name in reversed(self.function_names()):
            y1, y2 = y2 - evaluate(getattr(self, name), y1), y1
        return y1, y2

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        For each half step, with J the Jacobian of f at x2 = y1:

        ```
        dx1 = dy2        dx2 = dy1 + J^T dy2
        ```
        """
        (y1, y2), (d1, d2) = outputs, cotangents
        for name in reversed(self.function_names()):
            value, pullback = vjp(getattr(self, name), y1)
            y1, y2 = y2 - value, y1
            d1, d2 = d2, d1 + pullback(d2)
        return (y1, y2), (d1, d2)

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": keras.dtype_policies.serialize(self.function_policy),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "use_rope": self.use_rope,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_rate": self.drop_rate,
            "normalization": self.normalization,
        }
