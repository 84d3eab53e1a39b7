import keras
from keras import ops

from keras_efficient.autodiff.capture import Call
from keras_efficient.autodiff.capture import accepted
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.autodiff.tiles import run_tiles


@keras.saving.register_keras_serializable(package="keras_efficient")
class Tiled(keras.layers.Layer):
    """Run a layer tile by tile over a sequence, and keep only its input.

    A feed-forward block makes `4 * width` activations of each position, a head
    as many as there are words. A layer that treats positions alike can run on
    a part of them at a time: what is inside is there for one tile, in the
    forward pass and in the backward pass, which computes it again. Outputs and
    gradients are those of the layer but for rounding.

    It is right for layers that look at one position at a time: dense layers,
    normalizations of the last axis, activations, dropout (which draws its
    masks tile by tile), and blocks of them. Attention, recurrences, and
    convolutions or pooling along the sequence look further. Losses that the
    layer adds are summed over tiles.

    Args:
        layer: A `keras.layers.Layer` of one input tensor and one output tensor
            with the same positions.
        axis: Integer, that of the positions. Defaults to `1`.
        tiles: Integer, how many to divide them into. Defaults to `8`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor. Its mask, of shape `(batch, positions)`, is divided
            with it.
        training: Boolean, passed on to the layer.

    Returns:
        What the layer returns.

    Raises:
        TypeError: `layer` is not a layer.
        ValueError: `tiles` is not a positive integer; `axis` is that of the
            batch; by the call, if the layer does not keep positions, or
            writes statistics, as a `BatchNormalization` does, which would be
            those of a tile.

    Example:

    ```python
    block = keras.Sequential([
        keras.layers.LayerNormalization(),
        keras.layers.Dense(256, activation="gelu"),
        keras.layers.Dense(64),
    ])
    layer = keras_efficient.layers.Tiled(block, tiles=4)
    y = layer(keras.random.normal((2, 100, 64)))
    ```

    Reference:
        - [Kitaev et al., 2020](https://arxiv.org/abs/2001.04451), section 3
    """

    def __init__(self, layer, axis=1, tiles=8, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "`layer` must be a `keras.layers.Layer`. "
                f"Received: {layer} (of type {type(layer)})"
            )
        if not isinstance(tiles, int) or tiles < 1:
            raise ValueError(
                "`tiles` must be a positive integer, the number of tiles. "
                f"Received: tiles={tiles}"
            )
        if axis == 0:
            raise ValueError(
                "`axis` must be that of the positions, not the batch, which "
                "`keras_efficient.micro_batches` divides. Received: axis=0"
            )
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.axis = axis
        self.tiles = tiles
        self.supports_masking = True

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs, training=None):
        kwargs = accepted(self.layer, {"training": training})
        tiles = self._divide(inputs)
        calls = [Call(self.layer, (tile,), kwargs) for tile in tiles]
        outputs = run_tiles(calls, self.layer.variables)
        for call, x, y in zip(calls, tiles, outputs):
            self._check(call, x, y)
        return ops.concatenate(outputs, axis=self.axis)

    def _divide(self, x):
        rank = len(x.shape)
        axis, mask = self.axis % rank, mask_of(x)
        length = ops.shape(x)[axis]
        size = (length + self.tiles - 1) // self.tiles
        if isinstance(length, int):
            starts = range(0, length, size)
            tiles = [x]
            if len(starts) > 1:
                tiles = ops.split(x, list(starts)[1:], axis)
        else:  # in a graph; the last ones may be empty
            starts = [i * size for i in range(self.tiles)]
            before = (slice(None),) * axis
            tiles = [x[(*before, slice(i, i + size))] for i in starts]
        if mask is None or len(mask.shape) <= axis:
            return [with_mask(tile, mask) for tile in tiles]
        before = (slice(None),) * axis
        return [
            with_mask(tile, mask[(*before, slice(i, i + size))])
            for tile, i in zip(tiles, starts)
        ]

    def _check(self, call, x, y):
        written = [v for v in call.results.written if "float" in v.dtype]
        if written:
            raise ValueError(
                f"Layer '{self.layer.name}' writes '{written[0].path}', which "
                "would see tiles instead of the sequence. Leave it outside of "
                "`Tiled`."
            )
        for _, name in call.attributes.places:
            raise ValueError(
                f"Layer '{self.layer.name}' leaves a tensor in an attribute, "
                f"`{name}`, which would be that of a tile. Leave it outside of "
                "`Tiled`."
            )
        axis = self.axis % len(x.shape)
        if (
            len(getattr(y, "shape", ())) <= axis
            or y.shape[axis] != x.shape[axis]
        ):
            raise ValueError(
                f"Layer '{self.layer.name}' must return one tensor with the "
                f"positions of its input, axis {self.axis}. Received: inputs "
                f"of shape {tuple(x.shape)}, outputs {y}"
            )

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs, training=None):
        """What the layer returns, in the dtype that it has."""
        y = self.layer(inputs, **accepted(self.layer, {"training": training}))
        return keras.KerasTensor(y.shape, y.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "axis": self.axis,
            "tiles": self.tiles,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
