import keras

from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_block
from keras_efficient.layers.reversible.sub_layers import check_stream_dtype


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleParallel(ReversibleLayer):
    """Run one reversible layer on each of several streams.

    Stream i is split into two along `axis`, run through `blocks[i]` and
    joined again: `y_i = b_i(x_i)`. This is a block of a
    `keras_efficient.layers.ReversibleSequence` over feature maps of several
    scales, between the `keras_efficient.layers.RevSilo` that mix them.

    Args:
        blocks: List of reversible layers with the same `axis`, one for each
            stream.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of as many tensors as there are blocks.
        training: Python bool, passed on to all sub-layers.

    Returns:
        List of tensors of the same shapes.

    Raises:
        TypeError: an entry of `blocks` is not a reversible layer.
        ValueError: axes or dtypes differ, or there are not as many streams
            as blocks.

    Example:

    ```python
    layer = keras_efficient.layers.ReversibleParallel(
        [keras_efficient.layers.ReversibleMBConv(n) for n in (8, 16)]
    )
    x = [keras.random.normal((2, s, s, n)) for s, n in ((16, 8), (8, 16))]
    y = layer(x)
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """

    def __init__(self, blocks, **kwargs):
        blocks = list(blocks)
        for block in blocks:
            if not isinstance(block, ReversibleLayer):
                raise TypeError(
                    "`blocks` must be reversible layers, such as "
                    "`keras_efficient.layers.ReversibleMBConv(16)`. "
                    f"Received: {block} (of type {type(block)})"
                )
        if len({block.axis for block in blocks}) != 1:
            raise ValueError(
                "`blocks` must be one or more layers with the same `axis`. "
                f"Received: axes {[block.axis for block in blocks]}"
            )
        super().__init__(axis=blocks[0].axis, **kwargs)
        check_stream_dtype(self, blocks)
        self.blocks = blocks
        couplings = [c for block in blocks for c in block.couplings()]
        self.additive = all(c.additive for c in couplings)
        self.bijective = all(c.bijective for c in couplings)

    def build(self, inputs_shape, context_shape=None, arguments_shape=None):
        if len(inputs_shape) != len(self.blocks):
            raise ValueError(
                f"Layer '{self.name}' takes a list of {len(self.blocks)} "
                "streams, one for each block. Received: shapes "
                f"{inputs_shape}"
            )
        later = context_shape or arguments_shape
        for block, shape in zip(self.blocks, inputs_shape):
            build_block(block, tuple(shape), later)

    def build_sub_layers(self, shapes, shared):
        for block, shape in zip(self.blocks, shapes):
            block.build_sub_layers(block.stream_shapes(shape), shared)

    def couple(self, streams, evaluate):
        outputs = []
        for block, x in zip(self.blocks, streams, strict=True):
            x = split(x, self.axis)
            for coupling in block.couplings():
                x = coupling.couple(x, evaluate)
            outputs.append(join(x, self.axis))
        return tuple(outputs)

    def uncouple(self, streams, evaluate):
        inputs = []
        for block, y in zip(self.blocks, streams, strict=True):
            y = split(y, self.axis)
            for coupling in reversed(block.couplings()):
                y = coupling.uncouple(y, evaluate)
            inputs.append(join(y, self.axis))
        return tuple(inputs)

    def pull_back(self, outputs, cotangents, vjp):
        inputs, d_inputs = [], []
        for block, y, d in zip(self.blocks, outputs, cotangents, strict=True):
            y, d = split(y, self.axis), split(d, self.axis)
            for coupling in reversed(block.couplings()):
                y, d = coupling.pull_back(y, d, vjp)
            inputs.append(join(y, self.axis))
            d_inputs.append(join(d, self.axis))
        return tuple(inputs), tuple(d_inputs)

    def get_config(self):
        config = super().get_config()
        del config["axis"]  # that of the blocks
        blocks = map(keras.saving.serialize_keras_object, self.blocks)
        return {**config, "blocks": list(blocks)}

    @classmethod
    def from_config(cls, config):
        blocks = map(keras.saving.deserialize_keras_object, config["blocks"])
        return cls(**{**config, "blocks": list(blocks)})
