import keras

from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleSequence(ReversibleLayer):
    """Run reversible blocks one after the other, keeping only the last output.

    Bytes kept for the backward pass do not grow with the number of blocks:
    the backward pass walks from the last block to the first and recomputes
    the inputs of each from its outputs. It costs one more evaluation of each
    sub-layer, a third of the time of a plain step.

    `reversible=False` makes the plain twin: the same variables in the same
    order, the same results, the same checkpoint, with activations stored.

    Args:
        blocks: List of reversible layers, `AdditiveCoupling` or
            `ReversibleSequence`, with the same `axis`.
        reversible: Boolean. Whether to recompute activations instead of
            storing them. It can also be set as an attribute, before the model
            is compiled. Defaults to `True`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, split into two streams along the `axis` of the
            blocks and joined again at the end, or a pair of tensors of the
            same shape.
        training: Python bool, passed on to all sub-layers.

    Returns:
        One tensor or a pair, as the inputs, of the same shape.

    Raises:
        TypeError: an entry of `blocks` is not a reversible layer.
        ValueError: `blocks` is empty, or its axes differ.

    Example:

    ```python
    def function():
        return keras.Sequential([
            keras.layers.LayerNormalization(),
            keras.layers.Dense(64, activation="gelu"),
            keras.layers.Dense(16),
        ])

    blocks = [
        keras_efficient.layers.AdditiveCoupling(function(), function())
        for _ in range(8)
    ]
    inputs = keras.Input((32,))
    x = keras_efficient.layers.ReversibleSequence(blocks)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """

    def __init__(self, blocks, reversible=True, **kwargs):
        super().__init__(**kwargs)
        blocks = list(blocks)
        if not blocks:
            raise ValueError("`blocks` must hold at least one layer.")
        for block in blocks:
            if not isinstance(block, ReversibleLayer):
                raise TypeError(
                    "`blocks` must be reversible layers, such as "
                    "`keras_efficient.layers.AdditiveCoupling(f, g)`. "
                    f"Received: {block} (of type {type(block)})"
                )
        if len({block.axis for block in blocks}) > 1:
            raise ValueError(
                "All `blocks` must split along the same `axis`. Received: "
                f"axes {[block.axis for block in blocks]}"
            )
        self.blocks = blocks
        self.reversible = reversible

    @property
    def axis(self):
        return self.blocks[0].axis

    def couplings(self):
        return [c for block in self.blocks for c in block.couplings()]

    def build(self, input_shape):
        for layer in self.blocks:
            if not layer.built:
                layer.build(input_shape)

    def get_config(self):
        config = {
            "blocks": [
                keras.saving.serialize_keras_object(layer)
                for layer in self.blocks
            ],
            "reversible": self.reversible,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        blocks = [
            keras.saving.deserialize_keras_object(block)
            for block in config["blocks"]
        ]
        return cls(**{**config, "blocks": blocks})
