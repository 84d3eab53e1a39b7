import keras
from keras import layers

from keras_efficient.layers.convolutional.mb_conv import MBConv
from keras_efficient.layers.reversible.invertible_downsampling_2d import (
    InvertibleDownsampling2D,
)
from keras_efficient.layers.reversible.rev_silo import RevSilo
from keras_efficient.layers.reversible.reversible_mb_conv import (
    ReversibleMBConv,
)
from keras_efficient.layers.reversible.reversible_parallel import (
    ReversibleParallel,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)
from keras_efficient.models.application import channel_axis
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input
from keras_efficient.models.application import pool
from keras_efficient.models.rev_bifpn_neck import RevBiFPNNeck

STEM = 4  # sizes are divided by this once, without loss
# Of the pyramid, from the finest scale on; the last stands for all further.
KERNELS, EXTRA = (3, 5, 5, 5), (0, 0, 0, 2)
EXPANSIONS, SE_RATIOS = (1, 1, 2, 2), (0.25, 0.25, 0.125, 0.0)
# The authors' code, and what Keras has.
LAYOUTS = {
    "reference": {"order": "windows", "padding": "symmetric", "first": 2},
    "keras": {"order": "channels", "padding": "same", "first": 1},
}
# Of neck and head.
HEAD_EXPANSIONS, HEAD_SE_RATIOS = (1, 2, 2, 2), (0.25, 0.25, 0.125, 0.125)


def RevBiFPN(
    channels=(48, 64, 80, 160),
    head_channels=(48, 64, 128, 320),
    features=1280,
    extra_silos=2,
    blocks_per_silo=2,
    dropout=0.25,
    drop_rate=0.0,
    include_top=True,
    weights=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    reversible=True,
    layout="reference",
    name="rev_bifpn",
):
    """Build a reversible bidirectional feature pyramid network.

    The channels of an image are repeated and its windows of 4 x 4 pixels made
    channels. From then on N feature maps, one added at a time, go through
    reversible mobile inverted bottlenecks and are mixed by RevSilos. All of
    this is one reversible run: what a training step keeps of it are the N
    feature maps at its end, however many silos there are. The neck after it
    is recomputed as well; the head of the classifier is not.

    The default `layout` is that of the authors' code, for which the published
    accuracies hold and whose weights `tools/convert_weights.py revbifpn`
    converts. Three things differ in Keras' own way; the variables are the
    same, the functions are not:

    | layout | windows of pixels | zeros, strides > 1 | couplings add to |
    |---|---|---|---|
    | `"reference"` | `k * channels + c` | both sides alike | x2, then x1 |
    | `"keras"` | `c * 16 + k` | `padding="same"` | x1, then x2 |

    Args:
        channels: Tuple of integers, of the feature maps from fine to coarse;
            the first a multiple of 16, at least 48. Defaults to those of S0,
            as all that follows.
        head_channels: Tuple of integers, of the feature maps of the neck.
        features: Integer, channels before the classifier.
        extra_silos: Integer, silos after those that add a scale.
        blocks_per_silo: Integer, reversible bottlenecks at each scale before
            each silo. Defaults to `2`.
        dropout: Float, before the classifier.
        drop_rate: Float, of stochastic depth at the last silo, growing
            linearly up to there.
        include_top: Boolean. Whether to classify. Otherwise the model returns
            the list of feature maps of the neck, at 1/4, 1/8, ... of the
            input's size. Defaults to `True`.
        weights: Path of a file for `load_weights`, or `None`.
        input_shape: Tuple, without the batch axis; sizes must be multiples of
            `4 * 2 ** (N - 1)`. Defaults to `None`, any sizes and 3 channels.
        pooling: With `include_top=False`, `"avg"` or `"max"` returns the
            coarsest feature map, pooled. Defaults to `None`.
        classes: Integer. Defaults to `1000`.
        classifier_activation: Defaults to `"softmax"`.
        reversible: Boolean. `False` builds the plain twin: the same weights,
            with activations stored. Defaults to `True`.
        layout: `"reference"` or `"keras"`, see above. Defaults to
            `"reference"`.
        name: String.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: sizes or channels do not fit, or `layout` is neither.

    Example:

    ```python
    backbone = keras_efficient.models.RevBiFPN(
        channels=(48, 16), head_channels=(16, 32), extra_silos=1,
        include_top=False, input_shape=(32, 32, 3),
    )
    fine, coarse = backbone(keras.random.normal((1, 32, 32, 3)))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    if channels[0] < 48 or channels[0] % 16:
        raise ValueError(
            "The first of `channels` must be a multiple of 16 and at least "
            "48, which 4 x 4 pixels of three colors become. Received: "
            f"channels={channels}"
        )
    if len(channels) != len(head_channels):
        raise ValueError(
            "`channels` and `head_channels` must be equally many. Received: "
            f"{channels} and {head_channels}"
        )
    if layout not in LAYOUTS:
        raise ValueError(
            f"`layout` must be one of {tuple(LAYOUTS)}. Received: "
            f"layout={layout!r}"
        )
    layout = LAYOUTS[layout]
    inputs = image_input(input_shape, 3, STEM * 2 ** (len(channels) - 1))
    x = _repeat(inputs, channels[0] // STEM**2)
    x = InvertibleDownsampling2D(
        STEM, "pixel_shuffle", order=layout["order"], dtype="float32"
    )(x)
    blocks = _blocks(channels, extra_silos, blocks_per_silo, drop_rate, layout)
    x = ReversibleSequence(blocks, reversible, name="pyramid")([x])
    x = [
        RevBiFPNNeck(
            _mb_conv(filters, i, 1, HEAD_EXPANSIONS, HEAD_SE_RATIOS, 5),
            reversible,
            name=f"neck_{i}",
        )(maps)
        for i, (maps, filters) in enumerate(zip(x, head_channels))
    ]
    if include_top:
        x = _classify(x, head_channels, features, dropout, layout)
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        x = layers.Dense(classes, kernel_initializer=uniform, name="logits")(x)
        x = layers.Activation(
            classifier_activation, dtype="float32", name="predictions"
        )(x)
    elif pooling is not None:
        x = pool(x[-1], pooling)
    return finish(inputs, x, weights, name)


def _repeat(x, channels):
    axis = channel_axis()
    copies, rest = divmod(channels, x.shape[axis])
    copies = [x] * copies
    if rest:
        copies.append(x[..., :rest] if axis == -1 else x[:, :rest])
    # Pixels keep their precision in a mixed policy.
    return layers.Concatenate(axis, dtype="float32")(copies)


def _blocks(channels, extra_silos, blocks_per_silo, drop_rate, layout):
    blocks, silos = [], len(channels) - 1 + extra_silos
    for k in range(1, silos + 1):
        scales = channels[:k]
        drop = drop_rate * k / silos
        for _ in range(blocks_per_silo):
            blocks.append(
                ReversibleParallel(
                    [
                        ReversibleMBConv(
                            filters,
                            _of(KERNELS, i),
                            _of(EXPANSIONS, i),
                            _of(SE_RATIOS, i),
                            drop,
                            first=layout["first"],
                        )
                        for i, filters in enumerate(scales)
                    ]
                )
            )
        new_scale = k < len(channels)
        blocks.append(_silo(channels[: k + 1], drop, new_scale, layout))
    return blocks


def _silo(channels, drop, new_scale, layout):
    n = len(channels)

    def down(i, j):
        strides = 2 ** (j - i)
        is_new = new_scale and j == n - 1
        return _mb_conv(
            channels[j],
            i,
            strides,
            EXPANSIONS,
            SE_RATIOS,
            2 * strides - 1 + _of(EXTRA, i),
            0.0 if is_new else drop,
            layout,
        )

    def up(i, j):
        kernel_size = 3 + _of(EXTRA, i)
        settings = EXPANSIONS, SE_RATIOS, kernel_size, drop
        return keras.Sequential(
            [
                _mb_conv(channels[j], j, 1, *settings),
                layers.UpSampling2D(2 ** (i - j), interpolation="bilinear"),
            ]
        )

    return RevSilo(
        [[down(i, j) for j in range(i + 1, n)] for i in range(n - 1)],
        [[up(i, j) for j in range(i)] for i in range(1, n)],
        new_scale,
        channel_axis(),
    )


def _classify(maps, channels, features, dropout, layout):
    """Go from the finest to the coarsest feature map, and to one vector."""
    x = maps[0]
    for i, finer in enumerate(maps[1:]):
        settings = HEAD_EXPANSIONS, HEAD_SE_RATIOS, 5, 0.0, layout
        x = _mb_conv(channels[i + 1], i, 2, *settings, f"head_{i}")(x)
        x = layers.Add()([x, finer])
    x = layers.Conv2D(features, 1, use_bias=False, name="features")(x)
    x = layers.BatchNormalization(
        channel_axis(), 0.9, 1e-3, name="features_norm"
    )(x)
    x = layers.Activation("hard_silu")(x)
    return layers.Dropout(dropout)(pool(x, "avg"))


def _mb_conv(
    filters,
    i,
    strides,
    expansions,
    se_ratios,
    kernel,
    drop=0.0,
    layout=None,
    name=None,
):
    """Return a bottleneck with the settings of scale i."""
    settings = _of(expansions, i), _of(se_ratios, i)
    padding = layout["padding"] if layout else "same"  # the same for strides 1
    return MBConv(
        filters, kernel, strides, *settings, drop, padding=padding, name=name
    )


def _of(settings, i):
    return settings[min(i, len(settings) - 1)]
