from keras import layers

from keras_efficient.layers.convolutional.mb_conv import CONV
from keras_efficient.layers.reversible.reversible_mb_conv import (
    ReversibleMBConv,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)
from keras_efficient.models.application import channel_axis
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input

CONV_TRANSPOSE = {2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose}


def ReversibleUNet(
    rank=3,
    filters=(16, 32, 64, 128),
    depth=2,
    kernel_size=3,
    expansion=2,
    se_ratio=0.0,
    normalization="instance",
    include_top=True,
    weights=None,
    input_shape=None,
    channels=1,
    classes=2,
    classifier_activation="softmax",
    reversible=True,
    name="reversible_unet",
):
    """Build a partially reversible U-Net for images or volumes.

    At each level of the U stands a reversible run of mobile inverted
    bottlenecks, on the way down and on the way up. What a training step keeps
    of a run is its output, however many blocks there are and however wide
    they are inside. The convolutions between levels change shapes and are not
    reversible; their inputs are those outputs. Skip connections add.

    Args:
        rank: Integer, `2` for images, `3` for volumes. Defaults to `3`.
        filters: Tuple of integers, channels of the levels from fine to
            coarse. Defaults to `(16, 32, 64, 128)`.
        depth: Integer, blocks at each level on each way. Defaults to `2`.
        kernel_size: Integer, of the depthwise convolutions. Defaults to `3`.
        expansion: Integer, see `keras_efficient.layers.MBConv`. Defaults to
            `2`.
        se_ratio: Float, see there. Defaults to `0`.
        normalization: `"instance"`, which suits batches of one or two
            volumes, or `"batch"`. Defaults to `"instance"`.
        include_top: Boolean. Whether to classify each pixel. Otherwise the
            model returns `filters[0]` channels. Defaults to `True`.
        weights: Path of a file for `load_weights`, or `None`.
        input_shape: Tuple, without the batch axis; sizes must be multiples of
            `2 ** (len(filters) - 1)`. Defaults to `None`, any sizes and
            `channels`.
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
        ValueError: `rank` is not 2 or 3, or sizes do not fit.

    Example:

    ```python
    model = keras_efficient.models.ReversibleUNet(
        rank=3, filters=(8, 16), input_shape=(16, 16, 16, 1), classes=3
    )
    probabilities = model(keras.random.normal((1, 16, 16, 16, 1)))
    ```

    Reference:
        - [Pendse et al., 2021](https://arxiv.org/abs/2104.09648)
        - [Brügger et al., 2019](https://arxiv.org/abs/1906.06148)
    """
    if rank not in CONV:
        raise ValueError(f"`rank` must be 2 or 3. Received: rank={rank}")
    conv, conv_transpose = CONV[rank], CONV_TRANSPOSE[rank]
    last = len(filters) - 1

    def run(x, i, way):
        blocks = [
            ReversibleMBConv(
                filters[i],
                kernel_size,
                expansion,
                se_ratio,
                normalization=normalization,
                rank=rank,
            )
            for _ in range(depth)
        ]
        return ReversibleSequence(blocks, reversible, name=f"{way}_{i}")(x)

    inputs = image_input(input_shape, channels, 2**last, rank)
    x = conv(filters[0], 3, padding="same")(inputs)
    skips = []
    for i in range(last):
        skips.append(run(x, i, "down"))
        x = conv(filters[i + 1], 2, strides=2)(skips[-1])
    x = run(x, last, "bottom")
    for i in reversed(range(last)):
        x = conv_transpose(filters[i], 2, strides=2)(x)
        x = run(layers.Add()([x, skips[i]]), i, "up")
    if include_top:
        x = conv(classes, 1, name="logits")(x)
        x = _activation(classifier_activation)(x)
    return finish(inputs, x, weights, name)


def _activation(activation):
    settings = {"dtype": "float32", "name": "predictions"}
    if activation == "softmax":
        return layers.Softmax(channel_axis(), **settings)
    return layers.Activation(activation, **settings)
