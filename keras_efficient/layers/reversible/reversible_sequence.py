import keras

from keras_efficient.autodiff.capture import BLOCK_ARGUMENTS
from keras_efficient.autodiff.capture import arguments_of_block
from keras_efficient.autodiff.storage import check_store
from keras_efficient.layers.reversible.identical_blocks import check_identical
from keras_efficient.layers.reversible.invertible_block import InvertibleBlock
from keras_efficient.layers.reversible.invertible_block import as_blocks
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_block
from keras_efficient.layers.reversible.sub_layers import check_stream_dtype
from keras_efficient.layers.reversible.sub_layers import joined
from keras_efficient.layers.reversible.sub_layers import serialized


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
        blocks: List of reversible layers (couplings or further sequences)
            with the same `axis`, and of layers with a method `inverse`, which
            run on both streams, joined along this axis: resampling such as
            `InvertibleDownsampling2D`, `OrthogonalMixing`, activations.
            (Where the inverse is an approximation, as that of
            `InvertibleConv2D`, its inputs are kept.) So sizes can change
            inside of a run.
        reversible: Boolean. Whether to recompute activations instead of
            storing them. It can also be set as an attribute, before the model
            is compiled. Defaults to `True`.
        exact: Boolean. Whether streams are 32-bit integers inside, in steps
            of 2^-16 from -32768 to 32768. Then they are reconstructed bit
            for bit at any depth, as long as sub-layers give the same result
            for the same input on the device; gradients pass straight through
            the rounding. What leaves the range becomes NaN and stays it. For
            blocks that only add, subtract and negate streams. (The graph
            optimizer of TensorFlow fuses dense layers forward and not
            backward, which changes last bits: use `jit_compile=True`, or turn
            it off by `tf.config.optimizer.set_experimental_options(
            {"remapping": False})`.) Defaults to `False`.
        scan: Boolean. On JAX, whether to compile the blocks as one loop
            (`jax.lax.scan`): compilation then takes the same time at any
            depth, for one more copy of the parameters. For blocks that differ
            in values only. Not for convolutions on a CPU, which XLA computes
            in loops without its fast code (`guides/benchmarks.md`). The other
            backends gain nothing by it and go on without. Defaults to `False`.
        check: What to do in a training step whose backward pass does not come
            back to the inputs, because rounding errors have grown too large:
            `"warn"`, `"error"` or `None`. About a thousand numbers of each
            stream are compared; an error above 3 % of their root mean square
            counts, which means an error of about that size, or some times it,
            in the gradient. `"error"` raises a `FloatingPointError` where
            Python runs the backward pass (PyTorch, eager TensorFlow); in
            compiled programs gradients become NaN, with a warning. (From a
            compiled program of TensorFlow on a GPU there is no way to warn.)
            Defaults to `"warn"`, a warning once.
        store: How that which is kept (the outputs, and the inputs of blocks
            whose inverse is an approximation) is stored for the backward
            pass: `"bfloat16"`, in half of the bytes, or `"host"`, on PyTorch
            in the memory of the host. It is a copy, which helps where no
            layer behind keeps the outputs anyway. In bfloat16 the backward
            pass begins from outputs that are wrong by up to 0.4 %, and the
            gradient is wrong by about as much (and by more, where blocks
            amplify errors, as `check` tells). Defaults to `None`, as it is.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, split into two streams along the `axis` of the
            blocks and joined again at the end, or a list of streams.
        context: Tensor or nested structure of tensors for all sub-layers
            whose `call` has an argument `context`; gradients flow back to
            it. Defaults to `None`.
        mask: Tensor for all sub-layers whose `call` has an argument `mask`.
            Keras fills it in from the inputs if there is no `context`.
        training: Python bool, passed on to all sub-layers.
        block_arguments: List of one dictionary for each block, further
            arguments by name for its sub-layers alone.

    Returns:
        One tensor or a list of streams, as the inputs.

    Raises:
        TypeError: an entry of `blocks` has no inverse.
        ValueError: `blocks` is empty, their axes or dtypes differ, `check` is
            or `store` is none of its choices, `exact` is asked of blocks that
            multiply, or `store` beside `scan`, or `"bfloat16"` beside `exact`.
        NotImplementedError: `store="host"`, by the first call in training on
            a device other than the CPU, but for PyTorch.

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

    def __init__(
        self,
        blocks,
        reversible=True,
        exact=False,
        scan=False,
        check="warn",
        store=None,
        **kwargs,
    ):
        blocks = as_blocks(blocks)
        if check not in ("warn", "error", None):
            raise ValueError(
                "`check` must be 'warn', 'error' or `None`. Received: "
                f"check={check!r}"
            )
        check_store(store)
        if store is not None and (scan or (exact and store == "bfloat16")):
            raise ValueError(
                "`store` goes with `scan=False`, and 'bfloat16' with "
                "`exact=False`, whose integers it would round. Received: "
                f"store={store!r}, exact={exact}, scan={scan}"
            )
        _check_blocks(blocks, exact)
        super().__init__(axis=blocks[0].axis, **kwargs)
        self.split = _split_of(blocks)
        check_stream_dtype(self, blocks)
        self.blocks = blocks
        self.reversible = reversible
        self.exact = exact
        self.scan = scan
        self.check = check
        self.store = store

    def couplings(self):
        return [c for block in self.blocks for c in block.couplings()]

    def takes(self, name):
        return name == BLOCK_ARGUMENTS or super().takes(name)

    def spread(self, block_arguments):
        """Return the arguments of each block for each of its couplings."""
        if len(block_arguments) != len(self.blocks):
            raise ValueError(
                f"`{BLOCK_ARGUMENTS}` must be a list of one dictionary for "
                f"each of the {len(self.blocks)} blocks of '{self.name}'. "
                f"Received: {len(block_arguments)} of them"
            )
        spread = []
        for block, own in zip(self.blocks, block_arguments):
            lost = [name for name in own if not block.takes(name)]
            if lost:
                raise ValueError(
                    f"No sub-layer of block '{block.name}' has a call argument "
                    f"of the name(s) {lost}."
                )
            spread += [own] * len(block.couplings())
        return spread

    def build(self, inputs_shape, context_shape=None, arguments_shape=None):
        shapes = self.stream_shapes(inputs_shape)
        for block in self.blocks:
            if not block.built:
                build_block(block, shapes, context_shape or arguments_shape)
            shapes = block.compute_output_shape(shapes)
        if self.scan:
            check_identical(self.couplings())

    def compute_output_shape(self, inputs_shape, context_shape=None):
        shapes = self.stream_shapes(inputs_shape)
        for block in self.blocks:
            shapes = block.compute_output_shape(shapes)
        is_list = isinstance(inputs_shape[0], (list, tuple))
        return shapes if is_list else joined(shapes, self.axis)

    def build_sub_layers(self, shapes, shared):
        if BLOCK_ARGUMENTS in shared:
            self.spread(shared[BLOCK_ARGUMENTS])
        for i, block in enumerate(self.blocks):
            block.build_sub_layers(shapes, arguments_of_block(shared, i))
            shapes = block.compute_output_shape(shapes)

    def get_config(self):
        config = super().get_config()
        del config["axis"]  # that of the blocks
        return {
            **config,
            "blocks": serialized(self.blocks),
            "reversible": self.reversible,
            "exact": self.exact,
            "scan": self.scan,
            "check": self.check,
            "store": self.store,
        }

    @classmethod
    def from_config(cls, config):
        blocks = map(keras.saving.deserialize_keras_object, config["blocks"])
        return cls(**{**config, "blocks": list(blocks)})


def _check_blocks(blocks, exact):
    if not blocks:
        raise ValueError("`blocks` must hold at least one layer.")
    if len({block.axis for block in blocks}) > 1:
        raise ValueError(
            "All `blocks` must split along the same `axis`. Received: axes "
            f"{[block.axis for block in blocks]}"
        )
    inexact = [
        c.name for block in blocks for c in block.couplings() if not c.additive
    ]
    if exact and inexact:
        raise ValueError(
            "`exact=True` needs blocks that only add to their streams, such "
            "as `AdditiveCoupling`: integers are added exactly, not "
            f"multiplied. Received: {inexact}"
        )


def _split_of(blocks):
    """Where the blocks split one tensor."""
    splits = {block.split for block in blocks}
    if len(splits) > 1 and any(
        isinstance(c, InvertibleBlock) for b in blocks for c in b.couplings()
    ):
        raise ValueError(
            "Layers that join the streams split them again into halves. "
            f"Received: `split` of {splits - {None}} beside such layers. Use "
            "couplings of halves."
        )
    if len(splits) > 1:
        raise ValueError(
            "All `blocks` must split one tensor at the same place. Received: "
            f"`split` of {[block.split for block in blocks]}"
        )
    return splits.pop()
