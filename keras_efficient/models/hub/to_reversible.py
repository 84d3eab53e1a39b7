from keras_efficient.models.hub.momentum_backbone import MomentumBackbone


def to_reversible(backbone, momentum=None, reversible=True):
    """Make a backbone of KerasHub reversible, with the weights it has.

    It takes any backbone that is a chain of layers: GPT-2, Llama, Gemma, Qwen,
    Mistral, Phi, OPT, GPT-NeoX, Bloom, Falcon, BERT, RoBERTa, ViT and so on.
    The chain is found in the graph of the backbone, or inside of a layer in
    it: two or more layers of one class, each called on the output of the one
    before. What is before and behind the chain stays as it is.

    Use it to fine-tune in less memory. The result takes the place of the
    backbone in a task of KerasHub and shares its variables. It computes
    another, nearby function: a transformer layer takes one residual stream `x`
    to `layer(x)`, which cannot be undone, so the converted network has a
    second stream, a velocity. With `m` the momentum:

    ```
    plain:        x <- layer(x)
    converted:    v <- m v + (1 - m) (layer(x) - x)         v = 0 at first
                  x <- x + v
    ```

    What a layer adds arrives spread over the layers after it, a part
    `m ** n` of it still missing n layers on. A chain with a normalization
    behind it, as GPT-2, ends in `norm(x + m / (1 - m) v)`, where all that was
    added has arrived, another, as BERT, in `x`. With `m = 0` this would be the
    plain network; but the backward pass divides by `m` to recompute
    activations, and its rounding errors grow by `1 / m` a layer.

    By default `m = 0.001 ** (1 / layers)`, which bounds this growth by 1000.
    Choose more momentum for the gradient, less for the function, or move from
    the one to the other by `keras_efficient.callbacks.MomentumSchedule`.
    `keras_efficient.utils.check_reversibility` measures the first;
    `guides/benchmarks.md` has figures of both. Use the converted network also
    after fine-tuning: the plain wiring then predicts less well. If the
    function has to stay what it is, use `keras_efficient.recompute`, which
    keeps one tensor a layer.

    Args:
        backbone: A `keras_hub.models.Backbone`. LoRA can be enabled before
            or after.
        momentum: Float between 0 and 1, what the momentum is at first.
            Defaults to `None`, see above.
        reversible: Boolean. Whether to recompute activations instead of
            storing them. Defaults to `True`.

    Returns:
        A `keras_hub.models.Backbone` with the inputs and outputs of the one
        given. `keras_efficient.models.hub.ReversibleCausalLM` fine-tunes a
        decoder and generates text with a cache. (`keras_hub`'s own
        `GPT2CausalLM` would generate with the plain wiring.)

    Raises:
        TypeError: the backbone is no such chain, as T5 and ResNets.
        ValueError: `momentum` is not between 0 and 1.

    Example:

    ```python
    import keras_hub
    from keras_efficient.models import hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100, num_layers=4, num_heads=2, hidden_dim=32,
        intermediate_dim=64,
    )
    model = keras_hub.models.BertTextClassifier(
        hub.to_reversible(backbone), num_classes=2
    )
    ```

    Reference:
        - [Sander et al., 2021](https://arxiv.org/abs/2102.07870)
        - [Zhao et al., 2024](https://arxiv.org/abs/2401.04105), who anneal
    """
    return MomentumBackbone(backbone, momentum, reversible)
