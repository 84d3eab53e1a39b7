import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.core.base_reparametrized import BaseReparametrized
from keras_efficient.layers.core.base_reparametrized import innermost

KINDS = keras.layers
LAST = (KINDS.Dense, KINDS.Conv1D, KINDS.Conv2D, KINDS.Conv3D)
LAST += (KINDS.SeparableConv1D, KINDS.SeparableConv2D)
TRANSPOSED = (KINDS.Conv1DTranspose, KINDS.Conv2DTranspose)
TRANSPOSED += (KINDS.Conv3DTranspose,)
DEPTHWISE = (KINDS.DepthwiseConv1D, KINDS.DepthwiseConv2D)


@keras.saving.register_keras_serializable(package="keras_efficient")
class WeightStandardization(BaseReparametrized):
    """Call a layer with a kernel of mean 0 and variance 1 in each filter.

    ```
    w' = (w - mean(w)) / sqrt(var(w) + epsilon)      over all but the outputs
    ```

    in each call, with gradients through both. It takes the scale of a filter
    away, and so belongs before a normalization that gives one back:
    `GroupNormalization` or `keras_efficient.layers
    .BatchChannelNormalization`. Together they train with one or two images a
    batch, where batch statistics are of no use.

    The variance is the biased one, as in the authors' code for TensorFlow;
    theirs for PyTorch divides by n - 1, and adds epsilon to the root.
    Decay of a kernel whose scale is of no consequence raises its effective
    learning rate instead.

    Args:
        layer: A `Dense` layer or a convolution. Of a separable one, the
            pointwise kernel is meant. A depthwise one has a filter for each
            channel, of few weights: this is allowed, and noisy.
        epsilon: Positive float. Defaults to `1e-5`.
        axis: Integer or tuple of integers, the axes of the outputs in the
            kernel. Defaults to `None`: found for the layers of Keras above;
            it must be given for others, such as `EinsumDense`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What `layer` is called on.
        training: Boolean, passed on to `layer`.

    Returns:
        What `layer` returns.

    Raises:
        TypeError: `layer` is not a layer.
        ValueError: when it is built, if filters have one weight, or `axis` is
            needed.

    Example:

    ```python
    layer = keras_efficient.layers.WeightStandardization(
        keras.layers.Conv2D(8, 3, use_bias=False)
    )
    y = layer(keras.ops.ones((1, 5, 5, 2)))
    ```

    Reference:
        - [Qiao et al., 2019](https://arxiv.org/abs/1903.10520)
    """

    def __init__(self, layer, epsilon=1e-5, axis=None, **kwargs):
        super().__init__(layer, **kwargs)
        check_numbers("(0, inf)", epsilon=epsilon)
        self.epsilon = epsilon
        self.axis = axis

    def build_transform(self, shape):
        axes = self.axis
        if axes is None:
            axes = _output_axes(innermost(self.layer), len(shape))
        axes = [axes] if isinstance(axes, int) else list(axes)
        outputs = {axis % len(shape) for axis in axes}
        self._axes = [i for i in range(len(shape)) if i not in outputs]
        size = math.prod(shape[i] for i in self._axes)
        if size < 2:
            raise ValueError(
                f"Filters of layer '{self.layer.name}' must have several "
                "weights to be standardized. Received: a kernel of shape "
                f"{shape}, with {size} for each output."
            )

    def transform_kernel(self, kernel, training):
        mean = ops.mean(kernel, self._axes, keepdims=True)
        variance = ops.mean(
            ops.square(kernel - mean), self._axes, keepdims=True
        )
        return (kernel - mean) * ops.rsqrt(variance + self.epsilon)

    def get_config(self):
        config = {"epsilon": self.epsilon, "axis": self.axis}
        return {**super().get_config(), **config}


def _output_axes(layer, rank):
    if isinstance(layer, TRANSPOSED):
        return -2
    if isinstance(layer, DEPTHWISE):
        return -2, -1
    if isinstance(layer, LAST):
        return -1
    raise ValueError(
        f"`axis` must be given for a {type(layer).__name__}: the axes of the "
        f"outputs in its kernel, which has {rank}. Received: axis=None"
    )
