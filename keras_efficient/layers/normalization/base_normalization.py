"""What our normalization layers have in common."""

import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers


class BaseNormalization(keras.layers.Layer):
    """Normalize channels with statistics in float32.

    A subclass has `normalize(x, mask, training)`, where the channels of `x`
    are its last axis. It finds `gamma` and `beta` for each channel here.

    Args:
        axis: Integer, the axis of the channels.
        epsilon: Float, added to variances.
        momentum: Float, of moving statistics, in Keras' sense: the part that
            stays.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, axis=-1, epsilon=1e-3, momentum=0.99, **kwargs):
        check_numbers("[0, 1]", momentum=momentum)
        check_numbers("(0, inf)", epsilon=epsilon)
        super().__init__(**kwargs)
        self.axis = axis
        self.epsilon = epsilon
        self.momentum = momentum
        self.supports_masking = True

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ValueError(
                "`axis` must be an axis of the input other than the batch "
                f"axis. Received: axis={self.axis}, input_shape={input_shape}"
            )
        channels = input_shape[self.axis]
        if channels is None:
            raise ValueError(
                "The number of channels, the size of axis "
                f"{self.axis}, must be known. Received: "
                f"input_shape={input_shape}"
            )
        self.channels = channels
        self.gamma = self.channel_weight("gamma", "ones")
        self.beta = self.channel_weight("beta", "zeros")
        self.build_statistics()

    def build_statistics(self):
        """Add further weights; there are none by default."""

    def channel_weight(self, name, initializer, channels=None, **options):
        return self.add_weight(
            name=name,
            shape=(self.channels if channels is None else channels,),
            initializer=initializer,
            **options,
        )

    def channel_state(self, name, initializer, channels=None):
        """A weight that is not trained, float32 in mixed precision, too."""
        return self.channel_weight(
            name, initializer, channels, trainable=False, autocast=False
        )

    def call(self, inputs, mask=None, training=None):
        last = self.axis in (-1, len(inputs.shape) - 1)
        x = inputs if last else ops.moveaxis(inputs, self.axis, -1)
        x = self.normalize(x, mask, training)
        return x if last else ops.moveaxis(x, -1, self.axis)

    def affine(self, x, mean, variance, gamma=None, beta=None):
        """`gamma (x - mean) / sqrt(variance + epsilon) + beta`."""
        gamma = self.gamma if gamma is None else gamma
        beta = self.beta if beta is None else beta
        scale = ops.cast(gamma, mean.dtype) * ops.rsqrt(variance + self.epsilon)
        y = (ops.cast(x, mean.dtype) - mean) * scale
        return ops.cast(y + ops.cast(beta, mean.dtype), x.dtype)

    def move(self, variable, value):
        """Move a statistic towards that of this batch."""
        value = ops.stop_gradient(ops.reshape(value, variable.shape))
        variable.assign(
            self.momentum * variable + (1.0 - self.momentum) * value
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
        }


def moments(x, axes, mask=None):
    """Mean and biased variance in float32, with their axes kept.

    Args:
        x: Tensor of shape `(batch, *places, channels)`.
        axes: Tuple of axes to average over. With none of them the mean is `x`
            and the variance 0.
        mask: Boolean tensor of shape `(batch, *places)`, or of its first axes:
            only where it is true do entries count.
    """
    x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    if not axes:
        return x, ops.zeros_like(x)
    if mask is None:
        # One operation, which PyTorch differentiates from `x` alone.
        variance = ops.var(x, axes, keepdims=True)
        return ops.mean(x, axes, keepdims=True), variance
    weights = ops.cast(spread(mask, x), x.dtype)
    # As many as `x` has, where a sum is over channels or places, too.
    weights = weights * ops.ones_like(x)
    count = ops.maximum(ops.sum(weights, axes, keepdims=True), 1.0)
    mean = ops.sum(weights * x, axes, keepdims=True) / count
    squares = weights * ops.square(x - mean)
    return mean, ops.sum(squares, axes, keepdims=True) / count


def spread(mask, x):
    """The mask with axes of size one behind it, as many as `x` has."""
    return ops.reshape(
        mask, (*ops.shape(mask), *(1,) * (len(x.shape) - len(mask.shape)))
    )


def places(x):
    """The axes between batch and channels."""
    return tuple(range(1, len(x.shape) - 1))


def batch_and_places(x):
    return tuple(range(len(x.shape) - 1))
