import keras
import keras_hub

from keras_efficient.models.decoder_stack import DecoderStack


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleBackbone(keras_hub.models.Backbone):
    """Decode tokens for KerasHub, with activations that do not grow with depth.

    This is the network of `keras_efficient.models.ReversibleCausalLM` up to its
    last hidden states: see there for the equations, the cost and the arguments.

    Args:
        vocabulary_size: Integer, the number of tokens.
        num_layers: Integer, the number of blocks.
        num_heads: Integer, attention heads; has to divide `hidden_dim`.
        hidden_dim: Integer, the width of each of the two streams.
        intermediate_dim: Integer, units of the inner dense layer of a block.
        num_key_value_heads: Integer, a divisor of `num_heads`. Defaults to
            `None`, as many as `num_heads`.
        dropout: Float in [0, 1), after attention and feed-forward layers.
            Defaults to `0.0`.
        max_sequence_length: Integer, the number of learned positions, or
            `None` for rotary positions. Defaults to `None`.
        reversible: Boolean. Whether to recompute activations instead of
            storing them. Defaults to `True`.
        dtype: Dtype policy of the layers, such as `"mixed_bfloat16"`. Streams
            are float32 all the same.
        **kwargs: Arguments of `keras_hub.models.Backbone`, such as `name`.

    Call arguments:
        inputs: Dictionary of two integer tensors of shape `(batch, length)`,
            `"token_ids"` and `"padding_mask"`, which is 1 where there is a
            token.

    Returns:
        Hidden states, a tensor of shape `(batch, length, hidden_dim)`.

    Example:

    ```python
    from keras_efficient.models import hub

    backbone = hub.ReversibleBackbone(
        vocabulary_size=100, num_layers=4, num_heads=2, hidden_dim=32,
        intermediate_dim=128,
    )
    token_ids = keras.ops.ones((1, 5), "int32")
    backbone({"token_ids": token_ids, "padding_mask": token_ids})
    ```

    Reference:
        - [Kitaev et al., 2020](https://arxiv.org/abs/2001.04451)
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        num_key_value_heads=None,
        dropout=0.0,
        max_sequence_length=None,
        reversible=True,
        normalization="pre",
        dtype=None,
        **kwargs,
    ):
        self.stack = DecoderStack(
            vocabulary_size,
            num_layers,
            num_heads,
            hidden_dim,
            intermediate_dim,
            num_key_value_heads=num_key_value_heads,
            dropout=dropout,
            max_sequence_length=max_sequence_length,
            reversible=reversible,
            normalization=normalization,
            dtype=dtype,
            name="stack",
        )
        self.token_embedding = self.stack.token_embedding
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        hidden = self.stack(
            inputs["token_ids"], padding_mask=inputs["padding_mask"]
        )
        super().__init__(inputs=inputs, outputs=hidden, dtype=dtype, **kwargs)

    has_cache = True

    def empty_cache(self, batch_size, length):
        """Return a cache of keys and values for `call_with_cache`."""
        return self.stack.empty_cache(batch_size, length)

    def call_with_cache(self, token_ids, cache, index):
        """Compute the hidden states of the next tokens of a sequence.

        Args:
            token_ids: Integer tensor of shape `(batch, tokens)`.
            cache: As `empty_cache` returns it, or this function.
            index: Integer or integer tensor, the place of the first token.

        Returns:
            `(hidden states, cache)`.
        """
        return self.stack.call_with_cache(token_ids, cache, index)

    def get_config(self):
        return {**super().get_config(), **self.stack.options}
