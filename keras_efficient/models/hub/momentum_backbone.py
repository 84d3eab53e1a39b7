import keras
import keras_hub
from keras import ops

from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.models.cached_run import cached_run

MAX_GROWTH = 1000


@keras.saving.register_keras_serializable(package="keras_efficient")
class ResidualBranch(keras.layers.Layer):
    """What a transformer layer of KerasHub adds to its input."""

    def __init__(self, layer, mask_argument, **kwargs):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.supports_masking = True
        self.layer = layer
        self.mask_argument = mask_argument

    def build(self, x_shape):
        pass  # The layer comes with its weights.

    def call(self, x, mask=None, cache=None, index=None, training=None):
        arguments = {"training": training, self.mask_argument: mask}
        if cache is None:
            return self.layer(x, **arguments) - x
        arguments["self_attention_cache"] = cache
        arguments["self_attention_cache_update_index"] = index
        y, cache = self.layer(x, **arguments)
        return y - x, cache


@keras.saving.register_keras_serializable(package="keras_efficient")
class MomentumBackbone(keras_hub.models.Backbone):
    """Run a backbone of KerasHub as `to_reversible` has made it, which see.

    Args:
        backbone: A GPT-2 or BERT backbone.
        momentum: Float between 0 and 1, or `None`.
        reversible: Boolean.
        **kwargs: Arguments of `keras_hub.models.Backbone`.
    """

    def __init__(self, backbone, momentum, reversible=True, **kwargs):
        embed, finish, mask_argument = _parts(backbone)
        if momentum is None:
            # Errors of the reconstruction grow by 1 / momentum a layer.
            momentum = MAX_GROWTH ** (-1 / backbone.num_layers)
        run = ReversibleSequence(
            [
                MomentumCoupling(ResidualBranch(layer, mask_argument), momentum)
                for layer in backbone.transformer_layers
            ],
            reversible,
            name="transformer_layers",
        )
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in backbone.input
        }
        x = embed(inputs)
        position, velocity = run(
            [x, ops.zeros_like(x)], mask=inputs["padding_mask"]
        )
        outputs = finish(position, velocity, momentum)
        self.token_embedding = backbone.token_embedding
        super().__init__(
            inputs=inputs,
            outputs=outputs,
            **{"dtype": backbone.dtype_policy, **kwargs},
        )
        self.momentum = momentum
        self.reversible = reversible
        self.hidden_dim = backbone.hidden_dim
        self.vocabulary_size = backbone.vocabulary_size
        self._backbone_config = keras.saving.serialize_keras_object(backbone)
        self._cache_shape = (
            backbone.num_layers,
            2,
            backbone.num_heads,
            backbone.hidden_dim // backbone.num_heads,
        )
        self._embed, self._finish = embed, finish

    def empty_cache(self, batch_size, length):
        """Return a cache of keys and values for `call_with_cache`."""
        blocks, two, heads, size = self._cache_shape
        shape = (batch_size, blocks, two, length, heads, size)
        return ops.zeros(shape, self.compute_dtype)

    def call_with_cache(self, token_ids, cache, index):
        """Compute the hidden states of the next tokens of a sequence.

        Args:
            token_ids: Integer tensor of shape `(batch, tokens)`.
            cache: As `empty_cache` returns it, or this function.
            index: Integer or integer tensor, the place of the first token.

        Returns:
            `(hidden states, cache)`.
        """
        run = self.get_layer("transformer_layers")
        x = self._embed({"token_ids": token_ids}, start_index=index)
        x = ops.cast(x, run.compute_dtype)
        streams, cache = cached_run(run, (x, ops.zeros_like(x)), cache, index)
        return self._finish(*streams, self.momentum), cache

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": self._backbone_config,
            "momentum": self.momentum,
            "reversible": self.reversible,
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return super().from_config({**config, "backbone": backbone})


def _parts(backbone):
    """Return what is before and after the transformer layers of a backbone."""
    if isinstance(backbone, keras_hub.models.GPT2Backbone):
        return _before_gpt2(backbone), _after_gpt2(backbone), _GPT2_MASK
    if isinstance(backbone, keras_hub.models.BertBackbone):
        return _before_bert(backbone), _after_bert(backbone), "padding_mask"
    raise TypeError(
        "`backbone` must be a `keras_hub.models.GPT2Backbone` or a "
        f"`BertBackbone`. Received: backbone={backbone} (of type "
        f"{type(backbone)}). Wrap the layers of another network in "
        "`keras_efficient.layers.Recompute`, which computes the same function "
        "as the network and keeps one tensor a layer."
    )


_GPT2_MASK = "decoder_padding_mask"


def _before_gpt2(backbone):
    def embed(inputs, start_index=0):
        x = backbone.token_embedding(inputs["token_ids"])
        positions = backbone.position_embedding(x, start_index=start_index)
        return backbone.embeddings_dropout(
            backbone.embeddings_add((x, positions))
        )

    return embed


def _after_gpt2(backbone):
    def finish(position, velocity, momentum):
        # What the velocity would still bring if there were no more layers.
        rest = momentum / (1 - momentum) * velocity
        return backbone.layer_norm(position + rest)

    return finish


def _before_bert(backbone):
    def embed(inputs):
        x = backbone.token_embedding(inputs["token_ids"])
        positions = backbone.position_embedding(x)
        segments = backbone.segment_embedding(inputs["segment_ids"])
        x = backbone.embeddings_add((x, positions, segments))
        return backbone.embeddings_dropout(backbone.embeddings_layer_norm(x))

    return embed


def _after_bert(backbone):
    def finish(position, velocity, momentum):
        return {
            "sequence_output": position,
            "pooled_output": backbone.pooled_dense(position[:, 0]),
        }

    return finish
