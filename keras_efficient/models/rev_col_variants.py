"""The published sizes of RevCol."""

from keras_efficient.models.rev_col import RevCol


def RevColTiny(name="rev_col_tiny", **kwargs):
    """Build RevCol-Tiny: 4 columns, 30 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColTiny(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (64, 128, 256, 512), (2, 2, 4, 2), 4, 0.1, name=name, **kwargs
    )


def RevColSmall(name="rev_col_small", **kwargs):
    """Build RevCol-Small: 8 columns, 61 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColSmall(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (64, 128, 256, 512), (2, 2, 4, 2), 8, 0.3, name=name, **kwargs
    )


def RevColBase(name="rev_col_base", **kwargs):
    """Build RevCol-Base: 16 columns, 139 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColBase(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (72, 144, 288, 576), (1, 1, 3, 2), 16, 0.4, name=name, **kwargs
    )


def RevColLarge(name="rev_col_large", **kwargs):
    """Build RevCol-Large: 8 columns, 273 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColLarge(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (128, 256, 512, 1024), (1, 2, 6, 2), 8, 0.5, name=name, **kwargs
    )


def RevColXLarge(name="rev_col_xlarge", **kwargs):
    """Build RevCol-XLarge: 8 columns, 834 million parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColXLarge(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (224, 448, 896, 1792), (1, 2, 6, 2), 8, 0.5, name=name, **kwargs
    )


def RevColHuge(name="rev_col_huge", **kwargs):
    """Build RevCol-Huge: 8 columns, 2.16 billion parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.RevCol`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.RevColHuge(input_shape=(224, 224, 3))
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """
    return _build(
        (360, 720, 1440, 2880),
        (1, 2, 6, 2),
        8,
        0.5,
        far_feedback=True,
        name=name,
        **kwargs,
    )


def _build(channels, depths, columns, drop_rate, /, **kwargs):
    config = {
        "channels": channels,
        "depths": depths,
        "columns": columns,
        "drop_rate": drop_rate,
    }
    return RevCol(**{**config, **kwargs})
