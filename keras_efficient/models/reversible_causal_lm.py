import keras
from keras import ops

from keras_efficient.models.chunked_training import ChunkedTraining
from keras_efficient.models.decoder_stack import DecoderStack


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleCausalLM(keras.Model):
    """Predict tokens, with activations that do not grow with depth.

    This is a transformer that predicts the next token at each position, of
    `keras_efficient.layers.ReversibleTransformerDecoder` blocks on two
    streams that both start as the embedded tokens:

    ```
    x = embedding(tokens) [+ positions];  x1, x2 = x, x
    for each block:    x1 = x1 + attention(norm(x2))
                       x2 = x2 + feed_forward(norm(x1))
    logits = norm(x1 + x2) embedding^T
    ```

    Parameters are those of a plain transformer of this width. The backward
    pass keeps two streams instead of all activations, for a third more time.
    `reversible=False` is the plain twin with the same weights.

    Compiled with `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`
    it trains without holding its logits whole, as
    `keras_efficient.chunk_loss(model)` describes; `chunk_loss(model, None)`
    undoes it.

    It is a plain Keras model, from tokens to logits. With KerasHub installed
    `keras_efficient.models.hub.ReversibleCausalLM` is the same network for its
    tokenizers, samplers and presets. No weights have been published that
    either could load; `keras_efficient.models.hub.to_reversible` starts from
    those of a GPT-2.

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
            `None` for rotary positions, which have no last one (a model
            does not read well beyond the lengths it was trained on, though).
            Defaults to `None`.
        reversible: Boolean. Defaults to `True`.
        normalization: `"pre"`, `"post"` or `"peri"`, as in
            `keras_efficient.layers.ReversibleTransformerDecoder`. Defaults to
            `"pre"`.
        dtype: Dtype policy of the layers, such as `"mixed_bfloat16"`. Streams
            are float32 all the same.
        name: String. Defaults to `"reversible_causal_lm"`.

    Call arguments:
        inputs: Integer tensor of shape `(batch, length)`. Tokens after a
            position do not change its logits, so padding at the end needs no
            mask, only a zero weight in the loss.

    Returns:
        Logits, a tensor of shape `(batch, length, vocabulary_size)`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleCausalLM(
        vocabulary_size=100, num_layers=4, num_heads=2, hidden_dim=32,
        intermediate_dim=128,
    )
    model.compile(
        keras_efficient.optimizers.MicroAdam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    tokens = keras.ops.ones((1, 5), "int32")
    longer = model.generate(tokens, 10, temperature=1.0, seed=0)
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
        name="reversible_causal_lm",
        **kwargs,
    ):
        super().__init__(dtype=dtype, name=name, **kwargs)
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
            dtype=self.dtype_policy,
            name="stack",
        )
        self.build((None, None))
        ChunkedTraining(self, self.stack.token_embedding)

    def build(self, inputs_shape):
        self.stack.build(inputs_shape)

    def call(self, inputs, training=None):
        hidden = self.stack(inputs, training=training)
        return self.stack.token_embedding(hidden, reverse=True)

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape, self.stack.options["vocabulary_size"])

    def generate(self, token_ids, num_tokens, temperature=0.0, seed=None):
        """Continue sequences of tokens.

        One position is computed at a time, those of the prompt too; keys and
        values of earlier positions are cached.

        Args:
            token_ids: Integer array of shape `(batch, length)`, without
                padding.
            num_tokens: Integer, how many to add.
            temperature: Float. `0.0` takes the likeliest token; `1.0` draws
                from the predicted distribution. Defaults to `0.0`.
            seed: Integer, for the draws. Defaults to `None`.

        Returns:
            An integer tensor of shape `(batch, length + num_tokens)`.
        """
        prompt = ops.convert_to_tensor(token_ids, dtype="int32")
        batch, length = prompt.shape
        total = length + num_tokens
        # The largest of logits with Gumbel noise is a draw from their softmax.
        shape = (total, batch, self.stack.options["vocabulary_size"])
        uniform = keras.random.uniform(shape, 1e-7, 1.0, seed=seed)
        noise = -ops.log(-ops.log(uniform)) * temperature

        def body(place, tokens, cache):
            token = ops.slice(tokens, (0, place), (batch, 1))
            hidden, cache = self.stack.call_with_cache(token, cache, place)
            logits = self.stack.token_embedding(hidden, reverse=True)
            logits = ops.cast(logits[:, 0], "float32") + noise[place]
            following = ops.cast(ops.argmax(logits, axis=-1), "int32")
            given = ops.slice(tokens, (0, place + 1), (batch, 1))
            following = ops.where(place + 1 < length, given, following[:, None])
            tokens = ops.slice_update(tokens, (0, place + 1), following)
            return place + 1, tokens, cache

        tokens = ops.pad(prompt, [[0, 0], [0, num_tokens]])
        start = ops.convert_to_tensor(0, "int32")
        cache = self.stack.empty_cache(batch, total)
        _, tokens, _ = ops.while_loop(
            lambda place, *_: place < total - 1, body, (start, tokens, cache)
        )
        return tokens

    def get_config(self):
        return {**super().get_config(), **self.stack.options}
