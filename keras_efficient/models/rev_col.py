import keras
import numpy as np
from keras import layers

from keras_efficient.layers.convolutional.channel_normalization import (
    ChannelNormalization,
)
from keras_efficient.layers.convolutional.conv_next_block import ConvNeXtBlock
from keras_efficient.layers.reversible.invertible_upsampling_2d import (
    InvertibleUpsampling2D,
)
from keras_efficient.layers.reversible.reversible_column import ReversibleColumn
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)
from keras_efficient.models.aligned_up_sampling import AlignedUpSampling2D
from keras_efficient.models.application import channel_axis
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input
from keras_efficient.models.application import pool
from keras_efficient.models.rev_col_level import RevColLevel

STEM = 4
SUPERVISED = 4  # points along the columns, with intermediate supervision
SIMPLER_ABOVE = 1000  # classes, from which on images are painted at once


def RevCol(
    channels=(64, 128, 256, 512),
    depths=(2, 2, 4, 2),
    columns=4,
    drop_rate=0.1,
    kernel_size=3,
    far_feedback=False,
    intermediate_supervision=False,
    include_top=True,
    weights=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    head_init_scale=1.0,
    reversible=True,
    name="rev_col",
):
    """Build a reversible column network.

    Columns of ConvNeXt blocks stand side by side. Each sees the patches of
    the image and the feature maps of the column before, at all of its levels.
    All columns are one reversible run: what a training step keeps of them are
    the patches and one set of feature maps, however many columns there are.
    (The authors' code keeps a set for each column.)

    With `intermediate_supervision` a classifier stands after each quarter of
    the columns, and after each of the first three a decoder that paints the
    image again: level by level, or for more than 1,000 classes by one
    convolution. These keep their own set of feature maps, four in all. The
    outputs are `class_1`, ..., `class_4` and `image_1`, ..., `image_3`, the
    latter logits of pixels between 0 and 1. The authors add up

    ```
    loss = CE_4 + sum_{i=1..3} (1 - (i-1)/3) f BCE(image_i) + (i/4) c CE_i
    ```

    with f = 3 and c = 0.7, and for the images targets clipped to
    [0.01, 0.99]; by `compile(loss={...}, loss_weights={...})` here.

    The network is that of the authors' code, whose weights
    `tools/convert_weights.py revcol` converts. One thing differs: where the
    scale of a feature map is exactly 0, it counts as 0.001 here. There the
    authors' code leaves the feature map out and then divides by zero, so that
    training ends in NaN.

    Args:
        channels: Tuple of integers, of the levels from fine to coarse.
            Defaults to those of Tiny, as all that follows.
        depths: Tuple of integers, ConvNeXt blocks at each level.
        columns: Integer; a multiple of 4 with `intermediate_supervision`.
        drop_rate: Float, of stochastic depth at the last block of a column,
            growing linearly up to there.
        kernel_size: Integer, of the blocks. Defaults to `3`.
        far_feedback: Boolean, whether the finest level sees the coarsest one
            of the column before, as in Huge. Defaults to `False`.
        intermediate_supervision: Boolean. Defaults to `False`.
        include_top: Boolean. Whether to classify. Otherwise the model returns
            the list of feature maps of the last column, at 1/4, 1/8, ... of
            the input's size. Defaults to `True`.
        weights: Path of a file for `load_weights`, or `None`.
        input_shape: Tuple, without the batch axis; sizes must be multiples of
            `4 * 2 ** (N - 1)`. Defaults to `None`, any sizes and 3 channels.
        pooling: With `include_top=False`, `"avg"` or `"max"` returns the
            coarsest feature map, pooled. Defaults to `None`.
        classes: Integer. Defaults to `1000`.
        classifier_activation: Defaults to `"softmax"`.
        head_init_scale: Float, a factor of the first values of classifiers;
            0.001 is usual for fine-tuning. Defaults to `1.0`.
        reversible: Boolean. `False` builds the plain twin: the same weights,
            with activations stored. Defaults to `True`.
        name: String.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: sizes or numbers do not fit.

    Example:

    ```python
    model = keras_efficient.models.RevCol(
        (8, 16), (1, 1), columns=3, input_shape=(32, 32, 3), classes=10
    )
    probabilities = model(keras.random.normal((1, 32, 32, 3)))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    if len(channels) != len(depths):
        raise ValueError(
            "`channels` and `depths` must be equally many. Received: "
            f"channels={channels}, depths={depths}"
        )
    groups = SUPERVISED if intermediate_supervision else 1
    if columns % groups or (intermediate_supervision and not include_top):
        raise ValueError(
            "`intermediate_supervision` needs `include_top=True` and a number "
            f"of columns that {SUPERVISED} divides. Received: columns="
            f"{columns}, include_top={include_top}"
        )
    inputs = image_input(input_shape, 3, STEM * 2 ** (len(channels) - 1))
    x = layers.Conv2D(
        channels[0],
        STEM,
        STEM,
        kernel_initializer=_initializer(),
        name="patches",
    )(inputs)
    streams = [ChannelNormalization(name="patches_norm")(x)]
    outputs = {}
    size = columns // groups
    for k in range(1, groups + 1):
        run = [
            _column(channels, depths, drop_rate, kernel_size, far_feedback, i)
            for i in range((k - 1) * size, k * size)
        ]
        streams = ReversibleSequence(run, reversible, name=f"columns_{k}")(
            streams
        )
        if include_top:
            head = f"class_{k}" if intermediate_supervision else "predictions"
            outputs[head] = _classify(
                streams[-1],
                classes,
                classifier_activation,
                _initializer(head_init_scale),
                head,
            )
        if k < groups:
            paint = _paint if classes <= SIMPLER_ABOVE else _paint_at_once
            outputs[f"image_{k}"] = paint(streams[-1], channels, f"image_{k}")
    if intermediate_supervision:
        return finish(inputs, outputs, weights, name)
    if include_top:
        return finish(inputs, outputs["predictions"], weights, name)
    maps = streams[1:]
    maps = maps if pooling is None else pool(maps[-1], pooling)
    return finish(inputs, maps, weights, name)


def _column(channels, depths, drop_rate, kernel_size, far_feedback, index):
    rates = np.linspace(0, drop_rate, sum(depths)).tolist()
    levels, n = [], len(channels)
    for i, (filters, depth) in enumerate(zip(channels, depths)):
        factors = (2,) if index and i < n - 1 else ()
        if factors and i == 0 and far_feedback:
            factors = (2, 2 ** (n - 1))
        start = sum(depths[:i])
        levels.append(
            RevColLevel(
                filters,
                i > 0,
                factors,
                rates[start : start + depth],
                kernel_size,
            )
        )
    return ReversibleColumn(
        levels, index == 0, far_feedback, axis=channel_axis()
    )


def _classify(x, classes, activation, initializer, name):
    x = pool(x, "avg")
    x = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm")(x)
    x = layers.Dense(
        classes, kernel_initializer=initializer, name=f"{name}_logits"
    )(x)
    return layers.Activation(activation, dtype="float32", name=name)(x)


def _paint(x, channels, name):
    """Go from the coarsest feature map to an image, level by level."""
    for i, filters in enumerate(reversed(channels[:-1])):
        x = layers.Conv2D(
            filters,
            1,
            kernel_initializer=_initializer(),
            name=f"{name}_conv_{i}",
        )(x)
        x = ChannelNormalization(name=f"{name}_norm_{i}")(x)
        x = layers.Activation("gelu")(x)
        x = AlignedUpSampling2D()(x)
        x = ConvNeXtBlock(3, expansion=1, name=f"{name}_block_{i}")(x)
    return _pixels(x, STEM, name)


def _paint_at_once(x, channels, name):
    x = ChannelNormalization(name=f"{name}_norm")(x)
    return _pixels(x, STEM * 2 ** (len(channels) - 1), name)


def _pixels(x, size, name):
    x = layers.Conv2D(
        3 * size**2,
        1,
        kernel_initializer=_initializer(),
        name=f"{name}_pixels",
    )(x)
    return InvertibleUpsampling2D(
        size, "pixel_shuffle", dtype="float32", name=name
    )(x)


def _initializer(scale=1.0):
    # The authors cut it off at 100 standard deviations.
    return keras.initializers.RandomNormal(0, 0.02 * scale)
