import keras
from keras import layers


def PatchDiscriminator(
    filters=(64, 128, 256),
    kernel_size=4,
    name="patch_discriminator",
):
    """Build a network that judges how real each patch of an image is.

    Strided convolutions, each followed by a leaky ReLU, and a last one with
    a single channel: each of its pixels is the score of the patch that it
    sees. With the defaults that patch has 46 x 46 pixels, and eight pixels
    lie between neighbours.

    There is no normalization, unlike in the networks of Isola et al.: that of
    single images hides how bright they are, and that of batches ties the
    score of one image to the others.

    Args:
        filters: Tuple of integers, the channels of the convolutions, which
            each halve the size. Defaults to `(64, 128, 256)`.
        kernel_size: Integer. Defaults to `4`.
        name: String.

    Returns:
        A `keras.Sequential`, to be built by its first call.

    Example:

    ```python
    discriminator = keras_efficient.models.PatchDiscriminator((8, 16))
    scores = discriminator(keras.random.normal((2, 32, 32, 3)))
    scores.shape  # (2, 8, 8, 1)
    ```

    Reference:
        - [Isola et al., 2017](https://arxiv.org/abs/1611.07004)
    """
    stack = []
    for n in filters:
        stack.append(layers.Conv2D(n, kernel_size, strides=2, padding="same"))
        stack.append(layers.LeakyReLU(0.2))
    stack.append(layers.Conv2D(1, kernel_size, padding="same", name="scores"))
    return keras.Sequential(stack, name=name)
