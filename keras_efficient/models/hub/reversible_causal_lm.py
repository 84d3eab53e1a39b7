import keras
import keras_hub
from keras import ops

from keras_efficient.models.chunked_training import ChunkedTraining
from keras_efficient.models.hub.reversible_backbone import ReversibleBackbone


# Another class of this name is in `keras_efficient.models`.
@keras.saving.register_keras_serializable(package="keras_efficient.hub")
class ReversibleCausalLM(keras_hub.models.CausalLM):
    """Write text with a reversible backbone, its tokenizer and a sampler.

    `fit` and `generate` take strings, by the preprocessor, or tokens without
    one. `generate` caches keys and values; which token follows is up to the
    sampler given to `compile`. The last layer is the transposed embedding. With
    its default loss the model trains without holding its logits whole, as
    `keras_efficient.chunk_loss(model)` describes; `chunk_loss(model, None)`
    undoes it.

    Args:
        backbone: A `keras_efficient.models.hub.ReversibleBackbone`, or a
            decoder (GPT-2, Llama, Gemma and so on) after
            `keras_efficient.models.hub.to_reversible`.
        preprocessor: A `keras_hub.models.CausalLMPreprocessor` around a
            tokenizer of KerasHub, or `None`. Defaults to `None`.
        **kwargs: Arguments of `keras_hub.models.CausalLM`, such as `name`.

    Call arguments:
        inputs: Dictionary of two integer tensors of shape `(batch, length)`,
            `"token_ids"` and `"padding_mask"`.

    Returns:
        Logits, a tensor of shape `(batch, length, vocabulary_size)`.

    Example:

    ```python
    from keras_efficient.models import hub

    backbone = hub.ReversibleBackbone(
        vocabulary_size=100, num_layers=4, num_heads=2, hidden_dim=32,
        intermediate_dim=128,
    )
    model = hub.ReversibleCausalLM(backbone)
    model.compile(sampler="greedy")
    # Two tokens are given, three are to follow.
    prompt = {
        "token_ids": np.array([[5, 7, 0, 0, 0]]),
        "padding_mask": np.array([[1, 1, 0, 0, 0]]),
    }
    model.generate(prompt, stop_token_ids=None)
    ```
    """

    backbone_cls = ReversibleBackbone
    preprocessor_cls = keras_hub.models.CausalLMPreprocessor

    def __init__(self, backbone, preprocessor=None, **kwargs):
        if not getattr(backbone, "has_cache", False):
            raise TypeError(
                "`backbone` must be a `ReversibleBackbone`, or a decoder of "
                "KerasHub after `to_reversible`, which takes `token_ids` and "
                "`padding_mask` and whose layers take a cache. Received: "
                f"backbone={backbone} (of type {type(backbone)})"
            )
        self.backbone = backbone
        self.preprocessor = preprocessor
        hidden = backbone(backbone.input)
        logits = backbone.token_embedding(hidden, reverse=True)
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)
        ChunkedTraining(self, backbone.token_embedding)

    def generate_step(self, inputs, stop_token_ids=None):
        """Continue one batch of tokens; KerasHub compiles this function.

        Args:
            inputs: As in a call. The mask is 1 for the tokens that are given.
            stop_token_ids: Tuple of tokens that end a sequence, or `None`.

        Returns:
            A dictionary as the inputs, the mask 1 up to where each sequence
            has ended.
        """
        tokens, mask = inputs["token_ids"], inputs["padding_mask"]
        given = ops.cast(mask, "bool")
        batch, length = ops.shape(tokens)
        cache = self.backbone.empty_cache(batch, length)
        # Beyond what is given the cache is written again, token by token.
        hidden, cache = self.backbone.call_with_cache(tokens, cache, 0)

        def following(tokens, cache, index):
            last = ops.slice(tokens, (0, index - 1), (ops.shape(tokens)[0], 1))
            hidden, cache = self.backbone.call_with_cache(
                last, cache, index - 1
            )
            logits = self.backbone.token_embedding(hidden, reverse=True)
            return logits[:, 0], hidden[:, 0], cache

        tokens = self.sampler(
            next=following,
            prompt=tokens,
            cache=cache,
            index=ops.min(ops.sum(ops.cast(given, "int32"), axis=-1)),
            mask=given,
            stop_token_ids=stop_token_ids,
            hidden_states=hidden,
            model=self,
        )
        ended = ops.zeros_like(given)
        for stop in stop_token_ids or ():
            ended = ended | ((tokens == stop) & ~given)
        # The token that ends a sequence is still a part of it.
        ended = ops.cast(ended, "int32")
        before = ops.cumsum(ended, axis=-1) - ended
        return {"token_ids": tokens, "padding_mask": before == 0}
