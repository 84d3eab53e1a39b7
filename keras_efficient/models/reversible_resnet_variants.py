"""The published sizes of RevNet."""

from keras_efficient.models.reversible_resnet import ReversibleResNet


def ReversibleResNet38(name="reversible_resnet_38", **kwargs):
    """Build RevNet-38 for 32 x 32 pixels: 0.46 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleResNet`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleResNet38(input_shape=(32, 32, 3))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    return _build((32, 64, 112), (3, 3, 3), False, name, kwargs)


def ReversibleResNet110(name="reversible_resnet_110", **kwargs):
    """Build RevNet-110 for 32 x 32 pixels: 1.73 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleResNet`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleResNet110(input_shape=(32, 32, 3))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    return _build((32, 64, 128), (9, 9, 9), False, name, kwargs)


def ReversibleResNet164(name="reversible_resnet_164", **kwargs):
    """Build RevNet-164 for 32 x 32 pixels: 1.75 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleResNet`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleResNet164(input_shape=(32, 32, 3))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    return _build((32, 64, 128), (9, 9, 9), True, name, kwargs)


def ReversibleResNet56(name="reversible_resnet_56", **kwargs):
    """Build RevNet-56 for 224 x 224 pixels: 27.6 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleResNet`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleResNet56(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    return _build_large((2, 2, 3, 2), name, kwargs)


def ReversibleResNet104(name="reversible_resnet_104", **kwargs):
    """Build RevNet-104 for 224 x 224 pixels: 45.4 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleResNet`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    build = keras_efficient.models.ReversibleResNet104
    model = build(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """
    return _build_large((2, 2, 11, 2), name, kwargs)


def _build(filters, depths, bottleneck, name, kwargs):
    config = {"filters": filters, "depths": depths, "bottleneck": bottleneck}
    return ReversibleResNet(name=name, **{**config, **kwargs})


def _build_large(depths, name, kwargs):
    config = {"stem_filters": 128, "stem": "large", "classes": 1000}
    filters = (128, 256, 512, 832)
    return _build(filters, depths, True, name, {**config, **kwargs})
