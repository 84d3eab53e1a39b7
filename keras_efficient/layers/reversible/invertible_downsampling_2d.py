import keras

from keras_efficient.layers.reversible.base_invertible_downsampling import (
    BaseInvertibleDownsampling,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleDownsampling2D(BaseInvertibleDownsampling):
    """Trade the resolution of images for channels, without loss.

    Each window of `pool_size` pixels of a channel becomes
    `sigma = prod(pool_size)` channels by an orthogonal matrix U. Unlike
    pooling or a strided convolution this has an exact inverse, which does not
    amplify rounding errors, and it keeps the norm of its input. With the
    pixels x[c, 0 .. sigma-1] of a window of channel c in row-major order:

    ```
    y[c * sigma + k] = sum_j U[c, k, j] x[c, j]
    x[c, j] = sum_k U[c, k, j] y[c * sigma + k]      (the inverse)
    ```

    This order of channels holds on every backend and in both data formats.
    (It is that of `torch.nn.PixelUnshuffle`; `tf.nn.space_to_depth` has
    `k * channels + c`.)

    A permutation or a Haar transform has no weights. A learned U is the
    Cayley map `U = (I + A)^-1 (I - A)` of `A = W - W^T`, one for each
    channel: `channels * sigma^2` weights and `channels` small linear systems
    a call. The products are computed in the compute dtype of the layer, at
    the precision that the backend gives to matrix products.

    Args:
        pool_size: Integer or a tuple of two integers, the size of a
            window. Defaults to `2`.
        kind: `"haar"`, the orthonormal Haar transform along each axis, for
            sizes that are powers of two; `"pixel_shuffle"`, U = I, a bit-exact
            permutation; or `"orthogonal"`, a learned U for each channel.
            Defaults to `"haar"`.
        padding: `"valid"` refuses sizes that `pool_size` does not divide;
            `"same"` appends zeros to them, and `inverse` returns the padded
            size unless it is told the `output_size`. Defaults to `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        kernel_initializer: Initializer of W, of shape
            `(channels, sigma, sigma)`, for `kind="orthogonal"`. Defaults
            to `None`, with which U is the `start`.
        order: Order of the channels of small images: `"channels"` as above,
            or `"windows"`, `k * channels + c`, as in `tf.nn.space_to_depth`
            and in i-RevNet. Defaults to `"channels"`.
        parametrization: Of a learned U: `"cayley"`, or `"householder"`, a
            product of sigma reflections, see
            `keras_efficient.layers.OrthogonalMixing`. Defaults to `"cayley"`.
        start: Of a learned U: what is multiplied by it, and so what it starts
            from, `"pixel_shuffle"` or `"haar"`. Defaults to
            `"pixel_shuffle"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor of shape `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` for `"channels_first"`.

    Returns:
        A tensor of the layer's compute dtype, of sigma times the channels and
        the sizes of the input divided by `pool_size`, rounded up.

    Raises:
        ValueError: an argument is none of its choices, `"haar"` gets a size
            that is no power of two, or `"valid"` one that `pool_size` does
            not divide.

    Example:

    ```python
    down = keras_efficient.layers.InvertibleDownsampling2D(2, "orthogonal")
    x = keras.random.normal((2, 6, 6, 3))
    y = down(x)  # (2, 3, 3, 12)
    x_again = down.inverse(y)  # with the weights of `down`

    down = keras_efficient.layers.InvertibleDownsampling2D(padding="same")
    x = keras.random.normal((2, 5, 5, 3))
    x_again = down.inverse(down(x), output_size=(5, 5))
    ```

    Reference:
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
        - [Jacobsen et al., 2018](https://arxiv.org/abs/1802.07088)
    """

    rank = 2
