import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class Orthonormal(keras.regularizers.Regularizer):
    """Penalize kernels whose linear map E is not orthonormal.

    ```
    side="inputs":   factor * |E^T E - I|_F^2 / n    n: inputs of E
    side="outputs":  factor * |E E^T - I|_F^2 / n    n: outputs of E
    ```

    For a dense kernel E is its transpose. For that of a convolution E is the
    convolution itself, on an image without borders: overlapping windows are
    counted, and n is the number of inputs (of outputs) in the space of one
    stride. It costs as much as the convolution of n small images, of twice the
    size of the kernel.

    `keras.regularizers.OrthogonalRegularizer` takes dense kernels only, and
    leaves the lengths of their rows free.

    Args:
        factor: Non-negative float. Defaults to `0.01`.
        side: `"inputs"`, `"outputs"`, or `"auto"`, the one of the two that a
            kernel of its shape can fulfil. Defaults to `"auto"`.
        strides: Integer or a tuple of one integer a spatial axis, those of
            the convolution. Defaults to `1`.

    Raises:
        ValueError: an argument is outside its range, or does not fit the
            kernel.

    Example:

    ```python
    regularizer = keras_efficient.regularizers.Orthonormal(0.1, strides=2)
    conv = keras.layers.Conv2D(
        8, 3, strides=2, kernel_regularizer=regularizer
    )
    ```

    Reference:
        - [Wang et al., 2020](https://arxiv.org/abs/1911.12207), for
          convolutions
    """

    def __init__(self, factor=0.01, side="auto", strides=1):
        if not 0 <= factor < math.inf:
            raise ValueError(
                "`factor` must be a finite float of at least 0. Received: "
                f"factor={factor}"
            )
        if side not in ("auto", "inputs", "outputs"):
            raise ValueError(
                "`side` must be 'auto', 'inputs' or 'outputs'. Received: "
                f"side={side!r}"
            )
        self.factor = factor
        self.side = side
        self.strides = strides

    def __call__(self, x):
        strides = self._strides(x.shape)
        *kernel_size, inputs, outputs = x.shape
        inputs *= math.prod(strides)
        side = self.side
        if side == "auto":
            side = "inputs" if inputs <= outputs else "outputs"
        error = _input_error if side == "inputs" else _output_error
        n = inputs if side == "inputs" else outputs
        return self.factor * ops.sum(error(x, kernel_size, strides) ** 2) / n

    def _strides(self, shape):
        rank = len(shape) - 2
        strides = self.strides
        if isinstance(strides, int):
            strides = (strides,) * rank
        fits = rank in (0, 1, 2, 3) and len(strides) == rank
        if not fits or any(s > k for s, k in zip(strides, shape)):
            raise ValueError(
                "`Orthonormal` takes kernels of dense layers and of "
                "convolutions, with one stride, at most the size of the "
                "kernel, for each spatial axis. Received: kernel of shape "
                f"{tuple(shape)}, strides={self.strides}"
            )
        return tuple(strides)

    def get_config(self):
        return {
            "factor": self.factor,
            "side": self.side,
            "strides": self.strides,
        }


def _input_error(kernel, kernel_size, strides):
    """Return E^T E x - x for each of the unit vectors x of one stride."""
    if not kernel_size:
        gram = ops.matmul(kernel, ops.transpose(kernel))
        return gram - ops.eye(kernel.shape[0], dtype=gram.dtype)
    # Room for all windows that see the pixels of the unit vectors.
    room = [
        (s * math.ceil((k - 1) / s), k - s)
        for k, s in zip(kernel_size, strides)
    ]
    x = _unit_vectors(strides, kernel.shape[-2], room, kernel.dtype)
    settings = {"strides": strides, "data_format": "channels_last"}
    y = ops.conv(x, kernel, padding="valid", **settings)
    return ops.conv_transpose(y, kernel, padding="valid", **settings) - x


def _output_error(kernel, kernel_size, strides):
    """Return E E^T y - y for each of the unit vectors y of one pixel."""
    if not kernel_size:
        gram = ops.matmul(ops.transpose(kernel), kernel)
        return gram - ops.eye(kernel.shape[1], dtype=gram.dtype)
    windows = [(k - 1) // s for k, s in zip(kernel_size, strides)]
    # E^T y is the kernel of the channel, and E moves the kernels over it.
    x = ops.moveaxis(kernel, -1, 0)
    room = [(s * n, s * n) for s, n in zip(strides, windows)]
    x = ops.pad(x, [(0, 0), *room, (0, 0)])
    y = ops.conv(
        x,
        kernel,
        strides=strides,
        padding="valid",
        data_format="channels_last",
    )
    room = [(n, n) for n in windows]
    one_pixel = (1,) * len(strides)
    return y - _unit_vectors(one_pixel, kernel.shape[-1], room, y.dtype)


def _unit_vectors(sizes, channels, room, dtype):
    n = math.prod(sizes) * channels
    x = ops.reshape(ops.eye(n, dtype=dtype), (n, *sizes, channels))
    return ops.pad(x, [(0, 0), *room, (0, 0)])
