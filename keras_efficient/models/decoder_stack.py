import keras
from keras import layers
from keras import ops

from keras_efficient.layers import ReversibleSequence
from keras_efficient.layers import ReversibleTransformerDecoder
from keras_efficient.models.cached_run import cached_run
from keras_efficient.models.position_embedding import PositionEmbedding


@keras.saving.register_keras_serializable(package="keras_efficient")
class DecoderStack(layers.Layer):
    """Turn tokens into hidden states, for all language models of ours.

    ```
    x = embedding(tokens) [+ positions]
    x1, x2 = blocks(x, x)
    hidden states = norm(x1 + x2)
    ```

    The streams are added, not concatenated as in a reversible ViT, so that
    hidden states have the width of the embedding, which is also the last
    layer of a language model.

    Args: see `keras_efficient.models.ReversibleCausalLM`.

    Call arguments:
        token_ids: Integer tensor of shape `(batch, length)`.
        padding_mask: Boolean tensor of this shape, or `None`.
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
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.options = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "num_key_value_heads": num_key_value_heads or num_heads,
            "dropout": dropout,
            "max_sequence_length": max_sequence_length,
            "reversible": reversible,
            "normalization": normalization,
        }
        policy = self.dtype_policy
        self.token_embedding = layers.ReversibleEmbedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=policy,
            name="token_embedding",
        )
        self.positions = None
        if max_sequence_length is not None:
            self.positions = PositionEmbedding(
                max_sequence_length, dtype=policy, name="positions"
            )
        blocks = [
            ReversibleTransformerDecoder(
                intermediate_dim,
                num_heads,
                num_key_value_heads=num_key_value_heads,
                use_rope=max_sequence_length is None,
                dropout=dropout,
                normalization=normalization,
                dtype=policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.run = ReversibleSequence(blocks, reversible, name="blocks")
        self.norm = layers.LayerNormalization(
            epsilon=1e-5, dtype=policy, name="norm"
        )

    def build(self, token_ids_shape, padding_mask_shape=None):
        shape = (*token_ids_shape, self.options["hidden_dim"])
        self.token_embedding.build(token_ids_shape)
        if self.positions is not None:
            self.positions.build(shape)
        self.run.build([shape, shape])
        self.norm.build(shape)

    def call(self, token_ids, padding_mask=None, training=None):
        x = self._embed(token_ids)
        y1, y2 = self.run([x, x], mask=padding_mask, training=training)
        return self.norm(y1 + y2)

    def call_with_cache(self, token_ids, cache, index):
        """Compute the hidden states of the next tokens of a sequence.

        Args:
            token_ids: Integer tensor of shape `(batch, tokens)`.
            cache: As `empty_cache` returns it, or this function.
            index: Integer or integer tensor, the place of the first token.

        Returns:
            `(hidden states, cache)`.
        """
        x = ops.cast(self._embed(token_ids, index), self.run.compute_dtype)
        (y1, y2), cache = cached_run(self.run, (x, x), cache, index)
        return self.norm(y1 + y2), cache

    def empty_cache(self, batch_size, length):
        if self.positions is not None and isinstance(length, int):
            self.positions.check_length(length)
        options = self.options
        heads, size = options["num_heads"], options["hidden_dim"]
        groups = options["num_key_value_heads"]
        shape = (options["num_layers"], 2, length, groups, size // heads)
        return ops.zeros((batch_size, *shape), self.compute_dtype)

    def _embed(self, token_ids, index=0):
        x = self.token_embedding(token_ids)
        return x if self.positions is None else self.positions(x, index=index)

    def compute_output_shape(self, token_ids_shape, padding_mask_shape=None):
        return (*token_ids_shape, self.options["hidden_dim"])

    def get_config(self):
        return {**super().get_config(), **self.options}
