"""The published sizes of RevBiFPN: multiples of the width of S0."""

from keras_efficient.models.rev_bifpn import RevBiFPN


def RevBiFPNS0(name="rev_bifpn_s0", **kwargs):
    """Build RevBiFPN-S0: 3,419,196 parameters, meant for 224 x 224 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS0(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(1, 2, 0.25, 0, name, kwargs)


def RevBiFPNS1(name="rev_bifpn_s1", **kwargs):
    """Build RevBiFPN-S1: 5,112,300 parameters, meant for 256 x 256 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS1(input_shape=(256, 256, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(4 / 3, 2, 0.25, 0, name, kwargs)


def RevBiFPNS2(name="rev_bifpn_s2", **kwargs):
    """Build RevBiFPN-S2: 10,576,528 parameters, meant for 256 x 256 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS2(input_shape=(256, 256, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(2, 2, 0.3, 0, name, kwargs)


def RevBiFPNS3(name="rev_bifpn_s3", **kwargs):
    """Build RevBiFPN-S3: 19,574,184 parameters, meant for 288 x 288 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS3(input_shape=(288, 288, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(8 / 3, 3, 0.3, 0.05, name, kwargs)


def RevBiFPNS4(name="rev_bifpn_s4", **kwargs):
    """Build RevBiFPN-S4: 48,687,336 parameters, meant for 320 x 320 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS4(input_shape=(320, 320, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(4, 4, 0.4, 0.1, name, kwargs)


def RevBiFPNS5(name="rev_bifpn_s5", **kwargs):
    """Build RevBiFPN-S5: 81,998,976 parameters, meant for 352 x 352 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS5(input_shape=(352, 352, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(16 / 3, 4, 0.4, 0.1, name, kwargs)


def RevBiFPNS6(name="rev_bifpn_s6", **kwargs):
    """Build RevBiFPN-S6: 142,307,972 parameters, meant for 352 x 352 pixels.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevBiFPN`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevBiFPNS6(input_shape=(352, 352, 3))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """
    return _build(20 / 3, 5, 0.6, 0.3, name, kwargs)


def _build(width, extra_silos, dropout, drop_rate, name, kwargs):
    def scale(channels):
        return int(width * channels) // 16 * 16

    config = {
        "channels": tuple(map(scale, (48, 64, 80, 160))),
        "head_channels": tuple(map(scale, (48, 64, 128, 320))),
        "features": scale(1280),
        "extra_silos": extra_silos,
        "dropout": dropout,
        "drop_rate": drop_rate,
    }
    return RevBiFPN(name=name, **{**config, **kwargs})
