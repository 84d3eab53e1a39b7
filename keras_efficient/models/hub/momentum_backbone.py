import keras
import keras_hub
from keras import ops

from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.models.cached_run import cached_run
from keras_efficient.models.hub.residual_branch import ResidualBranch
from keras_efficient.models.hub.residual_chain import find_chain

MAX_GROWTH = 1000


@keras.saving.register_keras_serializable(package="keras_efficient")
class MomentumBackbone(keras_hub.models.Backbone):
    """Run a backbone of KerasHub as `to_reversible` has made it, which see.

    Args:
        backbone: A backbone that is a chain of layers.
        momentum: Float between 0 and 1, or `None`.
        reversible: Boolean.
        **kwargs: Arguments of `keras_hub.models.Backbone`.
    """

    def __init__(self, backbone, momentum, reversible=True, **kwargs):
        chain = find_chain(backbone)
        if momentum is None:
            # Errors of the reconstruction grow by 1 / momentum a layer.
            momentum = MAX_GROWTH ** (-1 / len(chain.layers))
        cache_shape = _cache_shape(backbone)
        width = chain.first.shape[-1]
        branches = [
            ResidualBranch(layer, cache_shape, width) for layer in chain.layers
        ]
        run = ReversibleSequence(
            [MomentumCoupling(branch, momentum) for branch in branches],
            reversible,
            name="transformer_layers",
        )
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(
                batch_shape=x.shape, dtype=x.dtype, name=x.name
            ),
            backbone.input,
        )
        tensors, x, arguments = chain.enter(inputs)
        streams = run([x, ops.zeros_like(x)], **arguments)
        if chain.is_normalized:
            hidden = _Limit(run.blocks[-1], name="limit")(streams)
        else:
            hidden = streams[0]
        outputs = chain.leave(tensors, hidden)
        self.token_embedding = backbone.token_embedding
        super().__init__(
            inputs=inputs,
            outputs=outputs,
            **{"dtype": backbone.dtype_policy, **kwargs},
        )
        self.momentum = momentum
        self.reversible = reversible
        # Tasks ask a backbone for its sizes.
        for name, value in vars(backbone).items():
            is_public = not name.startswith("_") and not hasattr(self, name)
            if is_public and isinstance(value, (int, float, str)):
                setattr(self, name, value)
        self._backbone_config = keras.saving.serialize_keras_object(backbone)
        self._lora_names = backbone.default_lora_layer_names()
        self._cache_shape = cache_shape
        self._chain = chain

    def default_lora_layer_names(self):
        return list(self._lora_names)

    @property
    def has_cache(self):
        """Whether it is a decoder of tokens whose layers take a cache."""
        run = self.get_layer("transformer_layers")
        return (
            all(block.f.takes("cache") for block in run.blocks)
            and isinstance(self.output, keras.KerasTensor)
            and set(self.input) == {"token_ids", "padding_mask"}
        )

    def empty_cache(self, batch_size, length):
        """Return a cache of keys and values for `call_with_cache`."""
        two, heads, size = self._cache_shape
        blocks = len(self._chain.layers)
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
        inputs = {
            "token_ids": token_ids,
            "padding_mask": ops.ones_like(token_ids),
        }
        tensors, x, _ = self._chain.enter(inputs, False, index)
        x = ops.cast(x, run.compute_dtype)
        streams, cache = cached_run(run, (x, ops.zeros_like(x)), cache, index)
        if self._chain.is_normalized:
            hidden = run.blocks[-1].limit(streams)
        else:
            hidden = streams[0]
        return self._chain.leave(tensors, hidden, False), cache

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


class _Limit(keras.layers.Layer):
    """What is behind the layers: see `MomentumCoupling.limit`."""

    def __init__(self, coupling, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.coupling = coupling
        self.supports_masking = True

    def call(self, streams):
        return self.coupling.limit(streams)

    def compute_output_shape(self, shapes):
        return shapes[0]


def _cache_shape(backbone):
    """Return `(2, heads, size)` by the names of KerasHub, or `None`."""

    def first(*names):
        return next((x for n in names if (x := getattr(backbone, n, None))), 0)

    heads = first("num_query_heads", "num_heads", "num_attention_heads")
    if not heads:
        return None
    size = first("head_dim") or first("hidden_dim") // heads
    return 2, first("num_key_value_heads") or heads, size
