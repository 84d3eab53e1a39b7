import keras
from keras import layers
from keras import ops

from keras_efficient.layers import InvertibleDownsampling1D
from keras_efficient.layers import InvertibleDownsampling2D
from keras_efficient.layers import InvertibleDownsampling3D
from keras_efficient.layers import InvertibleUpsampling1D
from keras_efficient.layers import InvertibleUpsampling2D
from keras_efficient.layers import InvertibleUpsampling3D
from keras_efficient.layers.reversible.additive_coupling import AdditiveCoupling
from keras_efficient.layers.reversible.reversible_concatenate import (
    ReversibleConcatenate,
)
from keras_efficient.layers.reversible.reversible_parallel import (
    ReversibleParallel,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)
from keras_efficient.layers.reversible.reversible_split import ReversibleSplit
from keras_efficient.models.application import channel_axis
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input

DOWN = {
    1: InvertibleDownsampling1D,
    2: InvertibleDownsampling2D,
    3: InvertibleDownsampling3D,
}
UP = {
    1: InvertibleUpsampling1D,
    2: InvertibleUpsampling2D,
    3: InvertibleUpsampling3D,
}
CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


def InvertibleUNet(
    rank=2,
    filters=32,
    depths=(2, 2, 2),
    skip_fraction=0.5,
    kernel_size=3,
    resampling="orthogonal",
    include_top=True,
    weights=None,
    input_shape=None,
    channels=1,
    classes=2,
    classifier_activation="softmax",
    reversible=True,
    name="invertible_unet",
):
    """Build a fully invertible U-Net (iUNet) for signals, images or volumes.

    At each level stand couplings. Then a part of the channels goes down to
    the next level, where each window of two pixels along each axis becomes
    channels by an orthogonal matrix that is learned; the rest waits for the
    way up. All levels, both ways and what changes sizes are one reversible
    run: what a training step keeps is its output, however deep the network
    is.

    ```
    way down:  x = couplings(x);  x, skip = split(x);   x = down(x)
    way up:    x = up(x);         x = concatenate(x, skip);  x = couplings(x)
    ```

    The run is the layer `"levels"` and has an `inverse`. Sizes that are no
    multiples of `2 ** (len(depths) - 1)` are padded by zeros before it and
    cropped behind it.

    Args:
        rank: Integer, `1` for signals, `2` for images, `3` for volumes.
            Defaults to `2`.
        filters: Integer, channels of the finest level. Defaults to `32`.
        depths: Tuple of integers, couplings at each level on each way, from
            fine to coarse. Defaults to `(2, 2, 2)`.
        skip_fraction: Float in [0, 1), the part of the channels of a level
            that does not go down (rounded, so that at least one does).
            Defaults to `0.5`.
        kernel_size: Integer, of the convolutions. Defaults to `3`.
        resampling: `kind` of `keras_efficient.layers.InvertibleDownsampling2D`:
            `"orthogonal"` (learned, from a Haar transform on), `"haar"` or
            `"pixel_shuffle"`. Defaults to `"orthogonal"`.
        include_top: Boolean. Whether a convolution leads to `filters`
            channels and another to `classes`. Otherwise the model is the run
            alone, with as many channels at the input as at the output.
            Defaults to `True`.
        weights: Path of a file for `load_weights`, or `None`.
        input_shape: Tuple, without the batch axis. Defaults to `None`, any
            sizes and `channels` (`filters` without the top).
        channels: Integer, of the input, where `input_shape` is `None`.
            Defaults to `1`.
        classes: Integer. Defaults to `2`.
        classifier_activation: Defaults to `"softmax"`, over the channels.
        reversible: Boolean. `False` builds the plain twin: the same weights,
            with activations stored. Defaults to `True`.
        name: String.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: `rank` is not 1, 2 or 3, `skip_fraction` is out of its
            range, or there are too few channels to be coupled.

    Example:

    ```python
    model = keras_efficient.models.InvertibleUNet(
        filters=8, depths=(1, 1), input_shape=(15, 18, 3), classes=4
    )
    probabilities = model(keras.random.normal((1, 15, 18, 3)))
    ```

    Reference:
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
    """
    if rank not in CONV:
        raise ValueError(f"`rank` must be 1, 2 or 3. Received: rank={rank}")
    if not 0 <= skip_fraction < 1:
        raise ValueError(
            "`skip_fraction` must be in [0, 1). Received: "
            f"skip_fraction={skip_fraction}"
        )
    axis, multiple = channel_axis(), 2 ** (len(depths) - 1)
    first = channels if include_top else filters
    inputs = image_input(input_shape, first, 1, rank)
    x = inputs
    if include_top:
        x = CONV[rank](filters, kernel_size, padding="same", name="stem")(x)
    elif x.shape[axis] != filters:
        raise ValueError(
            "Without the top the input has the channels of the finest level. "
            f"Received: input_shape={input_shape}, filters={filters}"
        )
    blocks = _levels(
        rank, filters, depths, skip_fraction, kernel_size, resampling
    )
    x = PadToMultiple(multiple, dtype="float32", name="pad")(x)
    (x,) = ReversibleSequence(blocks, reversible, name="levels")([x])
    x = CropLike(dtype="float32", name="crop")([x, inputs])
    if include_top:
        x = CONV[rank](classes, 1, name="logits")(x)
        settings = {"dtype": "float32", "name": "predictions"}
        if classifier_activation == "softmax":
            x = layers.Softmax(axis, **settings)(x)
        else:
            x = layers.Activation(classifier_activation, **settings)(x)
    return finish(inputs, x, weights, name)


def _levels(rank, filters, depths, skip_fraction, kernel_size, resampling):
    """List the blocks of the run."""
    axis, last = channel_axis(), len(depths) - 1
    settings = {
        "kind": resampling,
        "start": "haar",
        "dtype": "float32",
        "kernel_initializer": None,
    }
    sizes, parts = [filters], []
    for _ in range(last):
        parts.append(max(1, round(sizes[-1] * (1 - skip_fraction))))
        sizes.append(parts[-1] * 2**rank)

    def on_first(block, others):
        return ReversibleParallel([block, *[None] * others])

    def couplings(level, others):
        return [
            on_first(_coupling(rank, sizes[level], kernel_size), others)
            for _ in range(depths[level])
        ]

    blocks, skips = [], []
    for level in range(last):
        blocks += couplings(level, len(skips))
        if parts[level] < sizes[level]:
            blocks.append(ReversibleSplit(parts[level], axis))
            skips.append(level)
        blocks.append(on_first(DOWN[rank](2, **settings), len(skips)))
    blocks += couplings(last, len(skips))
    for level in reversed(range(last)):
        blocks.append(on_first(UP[rank](2, **settings), len(skips)))
        if level in skips:
            skips.remove(level)
            blocks.append(ReversibleConcatenate(axis))
        blocks += couplings(level, len(skips))
    return blocks


def _coupling(rank, filters, kernel_size):
    def function(n):
        return keras.Sequential(
            [
                CONV[rank](n, kernel_size, padding="same", use_bias=False),
                layers.GroupNormalization(1, axis=channel_axis()),
                layers.LeakyReLU(0.01),
            ]
        )

    half = filters // 2
    return AdditiveCoupling(
        function(half), function(filters - half), channel_axis()
    )


@keras.saving.register_keras_serializable(package="keras_efficient")
class PadToMultiple(layers.Layer):
    """Append zeros along all spatial axes, up to a multiple of a number."""

    def __init__(self, multiple, axis=None, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple
        self.axis = channel_axis() if axis is None else axis

    def call(self, inputs):
        sizes = ops.shape(inputs)
        first = 1 if self.axis == -1 else 2
        widths = [(0, 0)] * len(sizes)
        for a in range(first, first + len(sizes) - 2):
            widths[a] = (0, -sizes[a] % self.multiple)
        return ops.pad(inputs, widths)

    def compute_output_shape(self, input_shape):
        first = 1 if self.axis == -1 else 2
        shape = list(input_shape)
        for a in range(first, first + len(shape) - 2):
            shape[a] = shape[a] and shape[a] + -shape[a] % self.multiple
        return tuple(shape)

    def get_config(self):
        config = {"multiple": self.multiple, "axis": self.axis}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_efficient")
class CropLike(layers.Layer):
    """Crop the first of two tensors to the spatial sizes of the second."""

    def __init__(self, axis=None, **kwargs):
        super().__init__(**kwargs)
        self.axis = channel_axis() if axis is None else axis

    def call(self, inputs):
        x, like = inputs
        first = 1 if self.axis == -1 else 2
        keep = [slice(None)] * len(x.shape)
        sizes = ops.shape(like)
        for a in range(first, first + len(x.shape) - 2):
            keep[a] = slice(0, sizes[a])
        return x[tuple(keep)]

    def compute_output_shape(self, input_shape):
        x, like = map(list, input_shape)
        like[self.axis] = x[self.axis]
        return tuple(like)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
