import keras
from keras import layers

from keras_efficient.layers.reversible.additive_coupling import AdditiveCoupling
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)
from keras_efficient.models.application import channel_axis
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input
from keras_efficient.models.application import pool
from keras_efficient.models.residual_transition import PooledShortcut
from keras_efficient.models.residual_transition import ResidualTransition


def ReversibleResNet(
    filters=(32, 64, 112),
    depths=(3, 3, 3),
    bottleneck=False,
    stem_filters=32,
    stem="small",
    include_top=True,
    weights=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    reversible=True,
    name="reversible_resnet",
):
    """Build a reversible residual network (RevNet).

    A stage is a stack of couplings of two halves of the channels,

    ```
    y1 = x1 + f(x2)          f, g: (norm, relu, conv) twice, or three times
    y2 = x2 + g(y1)                with a `bottleneck`
    ```

    Between stages stands one with strides, which cannot be undone. All of
    them are one reversible run: what a training step keeps is the output of
    the last stage and the inputs of those between, however many blocks a
    stage has.

    Args:
        filters: Tuple of even integers, channels of the stages. With a
            `bottleneck` they are those of its narrow part, and those of the
            stage four times as many. Defaults to those of RevNet-38, as all
            that follows.
        depths: Tuple of integers, couplings in each stage.
        bottleneck: Boolean. Whether f and g are convolutions of 1, 3 and 1
            pixels, the middle one a quarter as wide, instead of two of 3.
            Defaults to `False`.
        stem_filters: Integer, channels of the first convolution.
        stem: `"small"`, a convolution of 3 x 3 pixels, or `"large"`, one of 7
            x 7 with strides of 2 and a pooling with strides of 2.
        include_top: Boolean. Whether to classify. Otherwise the model returns
            the feature map of the last stage. Defaults to `True`.
        weights: Path of a file for `load_weights`, or `None`.
        input_shape: Tuple, without the batch axis; sizes must be multiples of
            all strides. Defaults to `None`, any sizes and 3 channels.
        pooling: With `include_top=False`, `"avg"` or `"max"`. Defaults to
            `None`.
        classes: Integer. Defaults to `10`.
        classifier_activation: Defaults to `"softmax"`.
        reversible: Boolean. `False` builds the plain twin: the same weights,
            with activations stored. Defaults to `True`.
        name: String.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: sizes or numbers do not fit.

    Example:

    ```python
    model = keras_efficient.models.ReversibleResNet(
        (8, 16), (2, 2), stem_filters=8, input_shape=(16, 16, 3)
    )
    probabilities = model(keras.random.normal((1, 16, 16, 3)))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    if len(filters) != len(depths) or any(n % 2 for n in filters):
        raise ValueError(
            "`filters` must be even numbers, as many as `depths`. Received: "
            f"filters={filters}, depths={depths}"
        )
    if stem not in ("small", "large"):
        raise ValueError(
            f"`stem` must be 'small' or 'large'. Received: stem={stem!r}"
        )
    large = stem == "large"
    multiple = 2 ** (len(filters) - 1) * (4 if large else 1)
    inputs = image_input(input_shape, 3, multiple)
    x = _conv(stem_filters, 7 if large else 3, 2 if large else 1)(inputs)
    x = layers.Activation("relu")(_norm()(x))
    if large:
        x = layers.MaxPooling2D(3, 2, padding="same")(x)
    blocks, width = [], stem_filters
    for i, (n, depth) in enumerate(zip(filters, depths)):
        n = 4 * n if bottleneck else n
        for j in range(depth):
            strides = 2 if i and not j else 1
            blocks.append(
                _block(width, n, strides, bottleneck, first=not i and not j)
            )
            width = n
    x = ReversibleSequence(blocks, reversible, name="stages")(x)
    x = layers.Activation("relu")(_norm(name="norm")(x))
    if include_top:
        x = layers.Dense(classes, name="logits")(pool(x, "avg"))
        x = layers.Activation(
            classifier_activation, dtype="float32", name="predictions"
        )(x)
    elif pooling is not None:
        x = pool(x, pooling)
    return finish(inputs, x, weights, name)


def _block(inputs, outputs, strides, bottleneck, first):
    """Return a coupling from `inputs` to `outputs` channels."""
    half, axis = outputs // 2, channel_axis()
    f = _function(half, strides, bottleneck, first)
    g = _function(half, 1, bottleneck)
    if strides == 1 and inputs == outputs:
        return AdditiveCoupling(f, g, axis)
    shortcuts = [
        _conv(half, 1, strides)
        if bottleneck
        else PooledShortcut(half, strides, axis)
        for _ in range(2)
    ]
    return ResidualTransition(f, g, shortcuts, axis=axis)


def _function(filters, strides, bottleneck, first=False):
    """Return f or g; the first of all has normalized inputs."""
    kernels = [(filters, 3, strides), (filters, 3, 1)]
    if bottleneck:
        inner = filters // 4
        kernels = [(inner, 1, strides), (inner, 3, 1), (filters, 1, 1)]
    stack = []
    for i, kernel in enumerate(kernels):
        if i or not first:
            stack += [_norm(), layers.Activation("relu")]
        stack.append(_conv(*kernel))
    return keras.Sequential(stack)


def _conv(filters, size, strides):
    return layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
    )


def _norm(name=None):
    return layers.BatchNormalization(channel_axis(), name=name)
