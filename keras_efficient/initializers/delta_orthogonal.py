import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class DeltaOrthogonal(keras.initializers.Initializer):
    """Start a convolution as an orthonormal map.

    An orthogonal matrix Q takes the middle `strides` taps of the kernel, the
    others are zero: every pixel enters one window, once. With
    `padding="same"` and sizes that the strides divide, the convolution C then
    has `C^T C = I` if `filters >= prod(strides) * channels`, and `C C^T = I`
    if `filters` is at most that. (`keras.initializers.Orthogonal` makes the
    reshaped kernel orthogonal, which is the same for strides as large as the
    kernel only: elsewhere windows overlap.)

    Args:
        strides: Integer or a tuple of one integer a spatial axis, those of
            the convolution. Defaults to `1`.
        gain: Float, what Q is multiplied by. Defaults to `1.0`.
        seed: Integer or `keras.random.SeedGenerator`. Defaults to `None`.

    Raises:
        ValueError: the kernel is smaller than the strides, or is not that of
            a convolution.

    Example:

    ```python
    initializer = keras_efficient.initializers.DeltaOrthogonal()
    conv = keras.layers.Conv2D(
        8, 3, padding="same", kernel_initializer=initializer
    )
    ```

    Reference:
        - [Xiao et al., 2018](https://arxiv.org/abs/1806.05393), for strides
          of 1
    """

    def __init__(self, strides=1, gain=1.0, seed=None):
        self.strides = strides
        self.gain = gain
        self.seed = seed
        self._orthogonal = keras.initializers.Orthogonal(gain, seed)

    def __call__(self, shape, dtype=None):
        *kernel_size, channels, filters = shape
        strides = self.strides
        if isinstance(strides, int):
            strides = (strides,) * len(kernel_size)
        strides = tuple(strides)
        if not kernel_size or len(strides) != len(kernel_size):
            raise ValueError(
                "`DeltaOrthogonal` starts kernels of convolutions, of shape "
                "(kernel_size, ..., channels, filters), with one stride for "
                f"each axis. Received: shape={shape}, strides={strides}"
            )
        if any(s > k for s, k in zip(strides, kernel_size)):
            raise ValueError(
                "The kernel must not be smaller than the strides. Received: "
                f"shape={shape}, strides={strides}"
            )
        q = self._orthogonal((math.prod(strides) * channels, filters), dtype)
        q = ops.reshape(q, (*strides, channels, filters))
        around = [
            ((k - s) // 2, k - s - (k - s) // 2)
            for k, s in zip(kernel_size, strides)
        ]
        return ops.pad(q, [*around, (0, 0), (0, 0)])

    def get_config(self):
        config = self._orthogonal.get_config()
        return {"strides": self.strides, **config}
