import keras

from keras_efficient.layers.invertible.base_invertible_conv import (
    BaseInvertibleConv,
)


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleConv2D(BaseInvertibleConv, keras.layers.Conv2D):
    """Convolve images, or undo it with the transpose of the same kernel.

    ```
    call:     y = conv(x, K) + b
    inverse:  x = conv_transpose(y - b, K)
    ```

    The transposed convolution is the exact adjoint of the convolution, for
    all strides and both paddings, and the inverse where the convolution is
    an orthonormal map: with `padding="same"` and sizes that the strides
    divide it is one at the start. A loss on `inverse(call(x)) - x` keeps it
    close to one. Keep such kernels out of weight decay.

    With strides, several input sizes have the same output size. The inverse
    returns the size that the layer was built for or, for others, the one that
    leaves no pixel over; inputs that would not get their size back are
    refused. What lies behind the last window of `padding="valid"` becomes
    zero.

    The map loses dimensions unless inputs and outputs have as many values;
    the layer warns, once, when it is built.

    Args:
        filters: Positive integer, the number of output channels.
        kernel_size: Integer or a tuple of two.
        strides: Integer or a tuple of two, at most
            `kernel_size`. Defaults to `1`.
        padding: `"valid"` or `"same"`. Defaults to `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        use_bias: Boolean. Whether to add b. Defaults to `True`.
        kernel_initializer: Initializer of K. Defaults to `None`,
            `keras_efficient.initializers.DeltaOrthogonal(strides)`.
        **kwargs: Other arguments of `keras.layers.Conv2D` but `activation`,
            `dilation_rate`, `groups` and those of LoRA.

    Call arguments:
        inputs: A tensor of shape `(batch, height, width, channels)`,
            or `(batch, channels, height, width)` for `"channels_first"`.

    Returns:
        A tensor, as `keras.layers.Conv2D` returns it.

    Raises:
        ValueError: an argument is given that has no inverse, or the strides
            do not restore the size of the inputs.

    Example:

    ```python
    conv = keras_efficient.layers.InvertibleConv2D(
        12, 3, strides=2, padding="same"
    )
    x = keras.random.normal((2, 8, 8, 3))
    x_again = conv.inverse(conv(x))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """
