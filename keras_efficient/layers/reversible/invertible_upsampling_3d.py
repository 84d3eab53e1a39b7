import keras

from keras_efficient.layers.reversible.base_invertible_upsampling import (
    BaseInvertibleUpsampling,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleUpsampling3D(BaseInvertibleUpsampling):
    """Trade channels for the resolution of volumes, without loss.

    The layer computes the inverse of
    `keras_efficient.layers.InvertibleDownsampling3D`, and its `inverse` the
    downsampling: `sigma = prod(pool_size)` channels become a window of
    `pool_size` voxels of one channel, by an orthogonal matrix U.

    ```
    x[c, j] = sum_k U[c, k, j] y[c * sigma + k]
    y[c * sigma + k] = sum_j U[c, k, j] x[c, j]      (the inverse)
    ```

    With `kind="orthogonal"` the layer learns weights of its own. To undo one
    particular downsampling layer, with its weights, call the `inverse` of
    that one.

    Args:
        pool_size: Integer or a tuple of three integers, the size of a
            window. Defaults to `2`.
        kind: `"haar"`, the orthonormal Haar transform along each axis, for
            sizes that are powers of two; `"pixel_shuffle"`, U = I, a bit-exact
            permutation; or `"orthogonal"`, a learned U for each channel of
            the output. Defaults to `"haar"`.
        padding: What `inverse` does with sizes that `pool_size` does not
            divide: `"valid"` refuses them, `"same"` appends zeros. Defaults
            to `"valid"`.
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
        inputs: A tensor of shape
            `(batch, depth, height, width, channels * sigma)`, or
            `(batch, channels * sigma, depth, height, width)` for
            `"channels_first"`.

    Returns:
        A tensor of the layer's compute dtype, of the channels divided by sigma
        and the sizes of the input multiplied by `pool_size`.

    Raises:
        ValueError: an argument is none of its choices, `"haar"` gets a size
            that is no power of two, or sigma does not divide the number of
            channels.

    Example:

    ```python
    up = keras_efficient.layers.InvertibleUpsampling3D(2, "orthogonal")
    y = keras.random.normal((2, 2, 2, 2, 24))
    x = up(y)  # (2, 4, 4, 4, 3)
    y_again = up.inverse(x)

    # With the weights of a downsampling layer:
    down = keras_efficient.layers.InvertibleDownsampling3D(2, "orthogonal")
    x_again = down.inverse(down(x))
    ```

    Reference:
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
        - [Jacobsen et al., 2018](https://arxiv.org/abs/1802.07088)
    """

    rank = 3
