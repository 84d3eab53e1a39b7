import keras

from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.reversible.invertible_block import InvertibleBlock
from keras_efficient.layers.reversible.invertible_block import as_blocks
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_block
from keras_efficient.layers.reversible.sub_layers import check_stream_dtype
from keras_efficient.layers.reversible.sub_layers import first_size
from keras_efficient.layers.reversible.sub_layers import serialized


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleParallel(ReversibleLayer):
    """Run one reversible layer on each of several streams.

    Stream i is split into two along `axis`, run through `blocks[i]` and
    joined again: `y_i = b_i(x_i)`. This is a block of a
    `keras_efficient.layers.ReversibleSequence` over feature maps of several
    scales, between the `keras_efficient.layers.RevSilo` that mix them.

    Args:
        blocks: List of reversible layers with the same `axis`, or of layers
            with an `inverse`, one for each stream; `None` leaves a stream
            alone.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of as many tensors as there are blocks.
        training: Python bool, passed on to all sub-layers.

    Returns:
        List of tensors of the same shapes.

    Raises:
        TypeError: an entry of `blocks` has no inverse.
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
        run = as_blocks([block for block in blocks if block is not None])
        rest = iter(run)
        blocks = [block if block is None else next(rest) for block in blocks]
        axes = {block.axis for block in run}
        if len(axes) != 1:
            raise ValueError(
                "`blocks` must be one or more layers with the same `axis`. "
                f"Received: axes {sorted(axes)}"
            )
        super().__init__(axis=axes.pop(), **kwargs)
        check_stream_dtype(self, run)
        self.blocks = blocks
        couplings = [c for block in run for c in block.couplings()]
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
            if block is not None:
                build_block(block, _shapes(block, tuple(shape)), later)

    def build_sub_layers(self, shapes, shared):
        for block, shape in zip(self.blocks, shapes):
            if block is not None:
                shapes = block.stream_shapes(_shapes(block, tuple(shape)))
                block.build_sub_layers(shapes, shared)

    def couple(self, streams, evaluate):
        outputs = []
        for block, x in zip(self.blocks, streams, strict=True):
            if block is not None:
                x = self._split(block, x)
                for coupling in block.couplings():
                    x = coupling.couple(x, evaluate)
                x = join(x, self.axis)
            outputs.append(x)
        return tuple(outputs)

    def uncouple(self, streams, evaluate):
        inputs = []
        for block, y in zip(self.blocks, streams, strict=True):
            if block is not None:
                y = self._split(block, y, at_end=True)
                for coupling in reversed(block.couplings()):
                    y = coupling.uncouple(y, evaluate)
                y = join(y, self.axis)
            inputs.append(y)
        return tuple(inputs)

    def couple_with_log_det(self, streams, evaluate):
        outputs, total = [], 0.0
        for block, x in zip(self.blocks, streams, strict=True):
            if block is not None:
                x = self._split(block, x)
                for coupling in block.couplings():
                    x, more = coupling.couple_with_log_det(x, evaluate)
                    total = total + more
                x = join(x, self.axis)
            outputs.append(x)
        return tuple(outputs), total

    def uncouple_with_log_det(self, streams, evaluate):
        inputs, total = [], 0.0
        for block, y in zip(self.blocks, streams, strict=True):
            if block is not None:
                y = self._split(block, y, at_end=True)
                for coupling in reversed(block.couplings()):
                    y, more = coupling.uncouple_with_log_det(y, evaluate)
                    total = total + more
                y = join(y, self.axis)
            inputs.append(y)
        return tuple(inputs), total

    def pull_back(self, outputs, cotangents, vjp):
        inputs, d_inputs = [], []
        for block, y, d in zip(self.blocks, outputs, cotangents, strict=True):
            if block is not None:
                y, d = (self._split(block, t, at_end=True) for t in (y, d))
                for coupling in reversed(block.couplings()):
                    y, d = coupling.pull_back(y, d, vjp)
                y, d = join(y, self.axis), join(d, self.axis)
            inputs.append(y)
            d_inputs.append(d)
        return tuple(inputs), tuple(d_inputs)

    def _split(self, block, x, at_end=False):
        if _is_alone(block):
            return (x,)
        return split(x, self.axis, first_size(block, x.shape, at_end))

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return [
            tuple(shape if block is None else block.compute_output_shape(shape))
            for block, shape in zip(self.blocks, inputs_shape, strict=True)
        ]

    def get_config(self):
        config = super().get_config()
        del config["axis"]  # that of the blocks
        return {**config, "blocks": serialized(self.blocks)}

    @classmethod
    def from_config(cls, config):
        blocks = map(keras.saving.deserialize_keras_object, config["blocks"])
        return cls(**{**config, "blocks": list(blocks)})


def _is_alone(block):
    """Whether a block takes its stream as it is."""
    return isinstance(block, InvertibleBlock)


def _shapes(block, shape):
    return [shape] if _is_alone(block) else shape
