import keras

from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.reversible.log_det import AtInputs
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import joined


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleBlock(ReversibleLayer):
    """Make an invertible layer a block of a run: of both streams, joined.

    `ReversibleSequence` and `ReversibleParallel` wrap what has an `inverse`
    in this. The streams are joined along `axis`, go through the layer and
    are split again; a stream that is alone stays so. Where the inverse of the
    layer is an approximation (`has_exact_inverse`), its inputs are kept for
    the backward pass.

    Args:
        layer: A Keras layer with a method `inverse`.
        **kwargs: Arguments of `ReversibleLayer`.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        if not callable(getattr(layer, "inverse", None)):
            raise TypeError(
                "`blocks` must be reversible layers, such as "
                "`keras_efficient.layers.AdditiveCoupling(f, g)`, or have a "
                "method `inverse`, such as `InvertibleDownsampling2D`. "
                f"Received: {layer} (of type {type(layer)})"
            )
        if layer.compute_dtype != self.compute_dtype:
            raise ValueError(
                f"A block computes in the dtype of the streams, "
                f"{self.compute_dtype}. Received: layer '{layer.name}' with "
                f"{layer.compute_dtype}. Build it with "
                f"`dtype={self.compute_dtype!r}`."
            )
        if getattr(layer, "padding", None) == "same" and hasattr(layer, "crop"):
            raise ValueError(
                f"Layer '{layer.name}' pads odd sizes, which its inverse does "
                "not undo. Use `padding='valid'` in a run, and pad before it."
            )
        self.layer = layer
        self.bijective = getattr(layer, "has_exact_inverse", True)
        self.keeps_inputs = not self.bijective

    def build_sub_layers(self, shapes, shared):
        shape = joined(shapes, self.axis)
        self._size = shapes[0][self.axis]  # of the first stream
        self._alone = len(shapes) == 1
        if not self.layer.built:
            self.layer.build(shape)
        self._parts(self.layer.compute_output_shape(shape))

    def couple(self, streams, evaluate):
        y = self.layer(join(streams, self.axis))
        return (y,) if self._alone else split(y, self.axis)

    def uncouple(self, streams, evaluate):
        x = self.layer.inverse(join(streams, self.axis))
        return (x,) if self._alone else split(x, self.axis, self._size)

    def couple_with_log_det(self, streams, evaluate):
        return self.couple(streams, evaluate), self._log_det(streams)

    def uncouple_with_log_det(self, streams, evaluate):
        inputs = self.uncouple(streams, evaluate)
        return inputs, self._log_det(inputs)

    def _log_det(self, streams):
        if not hasattr(self.layer, "log_det"):
            raise ValueError(
                f"Layer '{self.layer.name}' does not tell its determinant: "
                "it needs a method `log_det(inputs)`."
            )
        return self.layer.log_det(join(streams, self.axis))

    def pull_back(self, outputs, cotangents, vjp):
        block = AtInputs(self) if self.keeps_inputs else self
        return vjp.derive(block, outputs, cotangents)

    def compute_output_shape(self, inputs_shape, context_shape=None):
        if isinstance(inputs_shape[0], (list, tuple)):
            shape = joined(inputs_shape, self.axis)
            shape = self.layer.compute_output_shape(shape)
            return self._parts(tuple(shape))
        return tuple(self.layer.compute_output_shape(tuple(inputs_shape)))

    def _parts(self, shape):
        return [shape] if self._alone else self.stream_shapes(shape)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def as_blocks(layers):
    """Return reversible layers, others wrapped for the axis of these."""
    layers = list(layers)
    axes = [x.axis for x in layers if isinstance(x, ReversibleLayer)]
    formats = [getattr(x, "data_format", None) for x in layers]
    axis = axes[0] if axes else 1 if "channels_first" in formats else -1
    return [
        x
        if isinstance(x, ReversibleLayer)
        else InvertibleBlock(x, axis=axis, dtype=_policy(x))
        for x in layers
    ]


def _policy(layer):
    dtype = getattr(layer, "variable_dtype", "float32")
    return "float64" if dtype == "float64" else "float32"
