"""A convolution and its batch normalization as one convolution."""

import keras
from keras import ops

from keras_efficient.autodiff.record import Record
from keras_efficient.autodiff.record import stored

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
CONVOLUTIONS = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *DEPTHWISE,
)


def check_pair(conv, bn):
    """Return why the two are not one convolution, or `None`."""
    if type(conv) not in CONVOLUTIONS:
        return f"a {type(conv).__name__} is no convolution without transposing"
    if type(bn) is not keras.layers.BatchNormalization:
        return f"a {type(bn).__name__} is not `BatchNormalization`"
    if bn.renorm:
        return "`renorm` has statistics of another kind"
    if conv.activation is not keras.activations.linear:
        return "there is an activation between them"
    if conv.activity_regularizer is not None:
        return "the convolution's output has a penalty"
    rank = conv.rank + 2
    if bn.axis % rank != _channel_axis(conv):
        return f"the normalization is not over channels, axis={bn.axis}"
    if getattr(conv, "lora_enabled", False) or conv.quantization_mode:
        return "the kernel is a sum or made of codes"
    return None


def merged_weights(conv, bn):
    """Return kernel and bias of `bn(conv(x), training=False)`.

    They are tensors of float32, or of a wider type of the kernel.
    """
    dtype = keras.backend.result_type(conv.variable_dtype, "float32")

    def read(variable):
        return ops.cast(stored([variable])[0], dtype)

    scale = ops.rsqrt(read(bn.moving_variance) + bn.epsilon)
    if bn.scale:
        scale = scale * read(bn.gamma)
    mean = read(bn.moving_mean)
    if conv.use_bias:
        mean = mean - read(conv.bias)
    bias = -scale * mean
    if bn.center:
        bias = bias + read(bn.beta)
    kernel = read(conv.kernel)
    if isinstance(conv, DEPTHWISE):  # (places, channels, multiplier)
        kernel = kernel * ops.reshape(scale, kernel.shape[-2:])
    else:
        kernel = kernel * scale
    return kernel, bias


def tuned_conv(conv, bn, x, call=None):
    """Return `bn(conv(x), training=False)`, as one convolution.

    Args:
        conv, bn: The two layers, built.
        x: Tensor.
        call: Function that stands for `conv`. Defaults to `None`: itself.
    """
    kernel, bias = merged_weights(conv, bn)
    values = [(conv.kernel, ops.cast(kernel, conv.kernel.dtype))]
    if conv.use_bias:
        values.append((conv.bias, ops.cast(bias, conv.bias.dtype)))
    with Record(values):
        y = (call or conv)(x)
    if not conv.use_bias:
        shape = [1] * len(y.shape)
        shape[_channel_axis(conv)] = -1
        y = y + ops.cast(ops.reshape(bias, shape), y.dtype)
    return ops.cast(y, bn.compute_dtype)


def _channel_axis(conv):
    return 1 if conv.data_format == "channels_first" else conv.rank + 1
