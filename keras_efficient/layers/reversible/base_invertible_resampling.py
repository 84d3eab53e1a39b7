"""What the invertible down- and upsampling layers have in common."""

import keras
import numpy as np
from keras import ops

from keras_efficient.layers.invertible.examples import zeros_per_example
from keras_efficient.layers.invertible.orthogonal import PARAMETRIZATIONS
from keras_efficient.layers.invertible.orthogonal import first_weight
from keras_efficient.layers.invertible.orthogonal import orthogonal
from keras_efficient.layers.invertible.orthogonal import weight_shape

KINDS = ("haar", "orthogonal", "pixel_shuffle")
ORDERS = ("channels", "windows")
STARTS = ("pixel_shuffle", "haar")


class BaseInvertibleResampling(keras.layers.Layer):
    """Exchange resolution for channels by orthogonal matrices, and back.

    A subclass has `rank`, the number of spatial axes. With the pixels
    x[c, 0 .. sigma-1] of a window in row-major order, sigma their number and
    U[c] an orthogonal matrix,

    ```
    downsample:  y[c * sigma + k] = sum_j U[c, k, j] x[c, j]
    upsample:    x[c, j] = sum_k U[c, k, j] y[c * sigma + k]
    ```

    With `order="windows"` what stands at `c * sigma + k` here stands at
    `k * channels + c`.
    """

    rank = None
    has_exact_inverse = True

    def __init__(
        self,
        pool_size=2,
        kind="haar",
        padding="valid",
        data_format=None,
        kernel_initializer=None,
        order="channels",
        parametrization="cayley",
        start="pixel_shuffle",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if data_format is None:
            data_format = keras.config.image_data_format()
        for name, value, allowed in (
            ("kind", kind, KINDS),
            ("padding", padding, ("same", "valid")),
            ("data_format", data_format, ("channels_first", "channels_last")),
            ("order", order, ORDERS),
            ("parametrization", parametrization, PARAMETRIZATIONS),
            ("start", start, STARTS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. Received: "
                    f"{name}={value!r}"
                )
        self.pool_size = self._sizes("pool_size", pool_size)
        self.kind = kind
        self.padding = padding
        self.data_format = data_format
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or first_weight(parametrization)
        )
        self.parametrization = parametrization
        self.start = start
        self.order = order
        self.sigma = int(np.prod(self.pool_size))
        self.kernel = None
        if "haar" in (kind, start) and any(n & (n - 1) for n in self.pool_size):
            raise ValueError(
                "`kind='haar'` and `start='haar'` need a `pool_size` of "
                f"powers of two. Received: pool_size={pool_size}. Use "
                "'pixel_shuffle' or 'orthogonal' for other sizes."
            )

    def add_kernel(self, channels):
        if self.kind == "orthogonal":
            # Not autocast: the matrix would lose its orthogonality.
            self.kernel = self.add_weight(
                name="kernel",
                shape=(
                    channels,
                    *weight_shape(self.sigma, self.parametrization),
                ),
                initializer=self.kernel_initializer,
                autocast=False,
            )

    def downsample(self, x):
        x = ops.convert_to_tensor(x, self.compute_dtype)
        self.downsampled_shape(x.shape)
        if self.padding == "same":
            x = self._pad(x)
        batch, sizes, channels = self._parts(ops.shape(x))
        grid = [n // p for n, p in zip(sizes, self.pool_size)]
        split = [n for pair in zip(grid, self.pool_size) for n in pair]
        x = ops.reshape(x, self._shape(batch, split, [channels]))
        x = ops.transpose(x, self._window_axes())
        x = ops.reshape(x, self._shape(batch, grid, [channels, self.sigma]))
        x = self._mix(x, "j", "k")
        if self.order == "windows":
            x = self._swap(x)
        return ops.reshape(x, self._shape(batch, grid, [channels * self.sigma]))

    def upsample(self, x):
        x = ops.convert_to_tensor(x, self.compute_dtype)
        self.upsampled_shape(x.shape)
        batch, grid, channels = self._parts(ops.shape(x))
        channels = channels // self.sigma
        if self.order == "windows":
            x = ops.reshape(x, self._shape(batch, grid, [self.sigma, channels]))
            x = self._swap(x)
        x = ops.reshape(x, self._shape(batch, grid, [channels, self.sigma]))
        x = self._mix(x, "k", "j")
        window = [channels, *self.pool_size]
        x = ops.reshape(x, self._shape(batch, grid, window))
        x = ops.transpose(x, np.argsort(self._window_axes()).tolist())
        sizes = [n * p for n, p in zip(grid, self.pool_size)]
        return ops.reshape(x, self._shape(batch, sizes, [channels]))

    def log_det(self, inputs):
        """Return `log |det U|` for each example: zeros."""
        if self.padding == "same":
            raise ValueError(
                f"Layer '{self.name}' appends zeros, so its Jacobian has no "
                "determinant. Use `padding='valid'`."
            )
        x = ops.convert_to_tensor(inputs, self.compute_dtype)
        return zeros_per_example(x)

    def downsampled_shape(self, shape):
        batch, sizes, channels = self._parts(shape)
        rests = [n and n % p for n, p in zip(sizes, self.pool_size)]
        if self.padding == "valid" and any(rests):
            raise ValueError(
                f"Layer '{self.name}' needs spatial sizes that `pool_size` "
                f"divides. Received: shape={tuple(shape)}, pool_size="
                f"{self.pool_size}, data_format='{self.data_format}'. Crop or "
                "pad the images, or use `padding='same'`."
            )
        sizes = [n and -(-n // p) for n, p in zip(sizes, self.pool_size)]
        return self._shape(batch, sizes, [channels * self.sigma])

    def upsampled_shape(self, shape):
        batch, sizes, channels = self._parts(shape)
        if channels % self.sigma:
            raise ValueError(
                f"Layer '{self.name}' turns every {self.sigma} channels into "
                "a window of one channel, so their number must be divisible "
                f"by {self.sigma}, the product of `pool_size`. Received: "
                f"shape={tuple(shape)}, pool_size={self.pool_size}, "
                f"data_format='{self.data_format}'"
            )
        sizes = [n and n * p for n, p in zip(sizes, self.pool_size)]
        return self._shape(batch, sizes, [channels // self.sigma])

    def get_config(self):
        config = {
            "pool_size": self.pool_size,
            "kind": self.kind,
            "padding": self.padding,
            "data_format": self.data_format,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "order": self.order,
            "parametrization": self.parametrization,
            "start": self.start,
        }
        return {**super().get_config(), **config}

    def check_inverse(self, outputs):
        if isinstance(outputs, keras.KerasTensor):
            raise ValueError(
                "`inverse` takes a tensor of values. Received the symbolic "
                f"{outputs}. Use it in the `call` of a subclassed layer or "
                "model instead of the functional API."
            )
        if self.kind == "orthogonal" and not self.built:
            raise ValueError(
                f"Layer '{self.name}' has to be built before `inverse` is "
                "used. Call it on inputs once, or call `build(input_shape)`."
            )

    def crop(self, x, output_size):
        """Take away what `padding="same"` added."""
        if isinstance(output_size, int):
            output_size = (output_size,) * self.rank
        _, sizes, _ = self._parts(x.shape)
        # Sizes may be tensors in a TensorFlow graph.
        bad = [
            n and isinstance(new, int) and not n - p < new <= n
            for n, p, new in zip(sizes, self.pool_size, output_size)
        ]
        if len(output_size) != self.rank or any(bad):
            raise ValueError(
                "`output_size` must be the spatial sizes of an input that was "
                f"padded to {tuple(sizes)}, by less than `pool_size`="
                f"{self.pool_size}. Received: output_size={output_size}"
            )
        keep = [slice(new) for new in output_size]
        return x[self._shape(slice(None), keep, [slice(None)])]

    def _pad(self, x):
        _, sizes, _ = self._parts(ops.shape(x))
        after = [(0, -n % p) for n, p in zip(sizes, self.pool_size)]
        return ops.pad(x, self._shape((0, 0), after, [(0, 0)]))

    def _mix(self, x, old, new):
        """Multiply by U or, from index k to index j, by its transpose."""
        if self.kind == "pixel_shuffle":
            return x
        if self.kind == "haar":
            matrix = haar_matrix(self.pool_size)
        else:
            matrix = orthogonal(self.kernel, self.parametrization)
            if self.start == "haar":
                haar = haar_matrix(self.pool_size)
                matrix = ops.matmul(matrix, ops.cast(haar, matrix.dtype))
        matrix = ops.cast(matrix, self.compute_dtype)
        indices = "ckj"[-len(matrix.shape) :]
        if self.data_format == "channels_last":
            equation = f"...c{old},{indices}->...c{new}"
        else:
            equation = f"bc{old}...,{indices}->bc{new}..."
        return ops.einsum(equation, x, matrix)

    def _swap(self, x):
        """Swap the axes of channels and of windows."""
        last = self.data_format == "channels_last"
        return ops.swapaxes(x, *((-2, -1) if last else (1, 2)))

    def _window_axes(self):
        """Return the order of axes with those of a window behind channels."""
        last = self.data_format == "channels_last"
        grid = [(1 if last else 2) + 2 * i for i in range(self.rank)]
        window = [axis + 1 for axis in grid]
        channels = 1 + 2 * self.rank if last else 1
        return list(self._shape(0, grid, [channels, *window]))

    def _shape(self, batch, sizes, channels):
        if self.data_format == "channels_last":
            return (batch, *sizes, *channels)
        return (batch, *channels, *sizes)

    def _parts(self, shape):
        """Return `(batch, sizes, channels)`, the inverse of `_shape`."""
        shape = tuple(shape)
        last = self.data_format == "channels_last"
        channels = shape[-1 if last else 1] if len(shape) > 1 else None
        if len(shape) != self.rank + 2 or channels is None:
            axes = [f"size_{i + 1}" for i in range(self.rank)]
            expected = ", ".join(self._shape("batch", axes, ["channels"]))
            raise ValueError(
                f"Layer '{self.name}' takes a tensor of shape ({expected}) "
                f"with a known number of channels. Received: shape={shape}"
            )
        return shape[0], shape[1:-1] if last else shape[2:], channels

    def _sizes(self, name, value):
        """Return one integer for each spatial axis."""
        sizes = value
        if not isinstance(value, (list, tuple)):
            sizes = (value,) * self.rank
        if len(sizes) != self.rank or not all(
            isinstance(n, int) and n > 0 for n in sizes
        ):
            raise ValueError(
                f"`{name}` must be a positive integer or {self.rank} of them. "
                f"Received: {name}={value}"
            )
        return tuple(sizes)


def haar_matrix(pool_size):
    """Return the Kronecker product of one Haar matrix for each axis.

    ```
    H(1) = [1],   H(2n) = [H(n) (x) [1, 1], I (x) [1, -1]] / sqrt(2)
    ```
    """
    matrix = np.ones((1, 1))
    for size in pool_size:
        axis = np.ones((1, 1))
        while len(axis) < size:
            rough = np.kron(axis, [[1, 1]])
            fine = np.kron(np.eye(len(axis)), [[1, -1]])
            axis = np.concatenate([rough, fine]) / np.sqrt(2)
        matrix = np.kron(matrix, axis)
    return matrix
