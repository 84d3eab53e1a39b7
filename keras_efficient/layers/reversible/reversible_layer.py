"""What a single coupling and a sequence of them have in common."""

import keras
from keras import ops

from keras_efficient.autodiff.reversible_run import reversible_run


class ReversibleLayer(keras.layers.Layer):
    """Base of the layers whose inputs can be computed from their outputs.

    A subclass has `axis` and `couplings()`, the list of those it runs. (A
    property would make Keras follow it when it saves the layer.)
    """

    # Whether the backward pass reconstructs activations or finds them stored.
    reversible = True

    def __init__(self, **kwargs):
        # The streams carry their own precision past the policy of the layer:
        # in bfloat16 the rounding errors of the reconstruction grow with every
        # block. Sub-layers compute in their own policy.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    @property
    def stream_dtype(self):
        """`"float32"`, or `"float64"` under a float64 policy."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    def call(self, inputs, training=None):
        streams = self._split(inputs)
        training = bool(training)
        if self.reversible:
            streams, losses = reversible_run(
                self.couplings(), streams, training
            )
            for loss in losses:
                self.add_loss(loss)
        else:
            for block in self.couplings():
                streams = block.couple(streams, _plain(training))
        return self._join(streams, inputs)

    def inverse(self, outputs, training=False):
        """Return the inputs for which the layer gives `outputs`.

        Args:
            outputs: One tensor or a pair of streams, as `call` returns them.
            training: Python bool. With `True`, BatchNormalization uses the
                statistics of the batch, and Dropout cannot be inverted.

        Returns:
            The inputs, one tensor or a pair, as `outputs`.
        """
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' has to be built before `inverse` is "
                "used. Call it on inputs once, or call `build(input_shape)`."
            )
        streams = self._split(outputs)
        for block in reversed(self.couplings()):
            streams = block.uncouple(streams, _plain(training))
        return self._join(streams, outputs)

    def stream_shape(self, input_shape):
        """Return the shape of one stream, given that of the input(s)."""
        if not _is_pair(input_shape):
            shape = list(input_shape)
            if not -len(shape) <= self.axis < len(shape) or not (
                self.axis % len(shape)
            ):
                raise ValueError(
                    "`axis` must be an axis of the input other than the "
                    f"batch axis. Received: axis={self.axis}, "
                    f"input_shape={tuple(shape)}"
                )
            size = shape[self.axis]
            if size is None or size % 2:
                raise ValueError(
                    f"Layer '{self.name}' splits its input along axis "
                    f"{self.axis} into two streams of equal shape, so the "
                    "size of this axis must be even and known. Received: "
                    f"input_shape={tuple(shape)}. Change the number of "
                    "channels, or pass a pair of streams."
                )
            shape[self.axis] = size // 2
            return tuple(shape)
        if len(input_shape) != 2 or (
            tuple(input_shape[0]) != tuple(input_shape[1])
        ):
            raise ValueError(
                f"Layer '{self.name}' takes one tensor or a pair of streams "
                "of the same shape. Received: input_shape="
                f"{[tuple(shape) for shape in input_shape]}"
            )
        return tuple(input_shape[0])

    def compute_output_shape(self, input_shape):
        self.stream_shape(input_shape)
        return input_shape

    def compute_output_spec(self, inputs, training=None):
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, self.stream_dtype), inputs
        )

    def _split(self, inputs):
        pair = inputs
        if not isinstance(inputs, (list, tuple)):
            pair = ops.split(inputs, 2, axis=self.axis)
        return tuple(ops.cast(x, self.stream_dtype) for x in pair)

    def _join(self, streams, like):
        if isinstance(like, (list, tuple)):
            return type(like)(streams)
        return ops.concatenate(streams, axis=self.axis)


def _plain(training):
    """Return `evaluate` for a run that stores its activations."""
    return lambda layer, x: ops.cast(layer(x, training=training), x.dtype)


def _is_pair(shape):
    return len(shape) > 0 and isinstance(shape[0], (list, tuple))
