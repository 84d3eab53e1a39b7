"""The usual sizes of a vision transformer, for patches of 16 x 16 pixels."""

from keras_efficient.models.reversible_vit import ReversibleViT


def ReversibleViTTiny(name="reversible_vit_tiny", **kwargs):
    """Build a reversible ViT of 12 blocks, 3 heads and width 192.

    At 224 x 224 pixels and 1000 classes it has 5,909,416 parameters.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleViT`, such as
            `input_shape`, `include_top`, `weights` and `classes`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleViTTiny(classes=10)
    ```

    Reference:
        - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)
    """
    return _build(12, 3, 192, 768, 0.0, name, kwargs)


def ReversibleViTSmall(name="reversible_vit_small", **kwargs):
    """Build a reversible ViT of 12 blocks, 6 heads and width 384.

    At 224 x 224 pixels and 1000 classes it has 22,434,664 parameters. Its
    `drop_rate` is that of the published training, 0.1.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleViT`, such as
            `input_shape`, `include_top`, `weights` and `classes`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleViTSmall(classes=10)
    ```

    Reference:
        - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)
    """
    return _build(12, 6, 384, 1536, 0.1, name, kwargs)


def ReversibleViTBase(name="reversible_vit_base", **kwargs):
    """Build a reversible ViT of 12 blocks, 12 heads and width 768.

    At 224 x 224 pixels and 1000 classes it has 87,335,656 parameters. Its
    `drop_rate` is that of the published training, 0.2.

    Args:
        name: String.
        **kwargs: Arguments of `keras_efficient.models.ReversibleViT`, such as
            `input_shape`, `include_top`, `weights` and `classes`.

    Returns:
        A `keras.Model`.

    Example:

    ```python
    model = keras_efficient.models.ReversibleViTBase(classes=10)
    ```

    Reference:
        - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)
    """
    return _build(12, 12, 768, 3072, 0.2, name, kwargs)


def _build(
    num_layers, num_heads, hidden, intermediate, drop_rate, name, kwargs
):
    sizes = num_layers, num_heads, hidden, intermediate
    return ReversibleViT(
        *sizes, name=name, **{"drop_rate": drop_rate, **kwargs}
    )
