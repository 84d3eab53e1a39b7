"""What the invertible convolutions have in common."""

import math

from keras import ops

from keras_efficient.initializers import DeltaOrthogonal
from keras_efficient.layers.invertible.invertible_dense import refuse
from keras_efficient.layers.invertible.invertible_dense import without_refused
from keras_efficient.layers.invertible.invertible_layer import InvertibleLayer


class BaseInvertibleConv(InvertibleLayer):
    """Invert a convolution by the adjoint of the same kernel.

    The adjoint of cropping is padding and the other way round, so that for
    kernels K, strides and either padding, with P the zeros that the padding
    adds before,

    ```
    call:     y[o] = b + sum_t K[t] x[strides * o + t - P]
    inverse:  x[i] = sum_o K[i - strides * o + P]^T (y[o] - b)
    ```

    A subclass is a Keras convolution too.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        data_format=None,
        use_bias=True,
        kernel_initializer=None,
        **kwargs,
    ):
        refuse(self, kwargs)
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        if kernel_initializer is None:
            self.kernel_initializer = DeltaOrthogonal(self.strides)
        if self.padding == "causal":
            raise ValueError(
                "`padding` must be 'valid' or 'same'. Received: "
                f"padding={padding!r}"
            )
        if any(s > k for s, k in zip(self.strides, self.kernel_size)):
            raise ValueError(
                "`strides` larger than `kernel_size` skip pixels, which no "
                f"inverse can restore. Received: strides={self.strides}, "
                f"kernel_size={self.kernel_size}. Use smaller strides."
            )
        self._input_sizes = (None,) * self.rank
        self._output_sizes = (None,) * self.rank

    def build(self, input_shape):
        output_shape = self.compute_output_shape(input_shape)
        super().build(input_shape)
        self._input_sizes = self._sizes(input_shape)
        self._output_sizes = self._sizes(output_shape)
        axis = self._channel_axis()
        inputs, outputs = input_shape[axis], self.filters
        if None in self._input_sizes:
            inputs *= math.prod(self.strides)
        else:
            inputs *= math.prod(self._input_sizes)
            outputs *= math.prod(self._output_sizes)
        self._warn_of_loss(inputs, outputs)

    def call(self, inputs):
        # Not the call of Keras: on TensorFlow `ops.add` takes a bias of
        # "channels_first" to the last axis, if that has its size (3.15.1).
        outputs = self.linear(inputs)
        return outputs + self._shaped_bias() if self.use_bias else outputs

    def linear(self, inputs):
        x = super().linear(inputs)
        self._check_sizes(tuple(x.shape))
        return self.convolution_op(x, ops.cast(self.kernel, x.dtype))

    def adjoint(self, outputs):
        y = super().adjoint(outputs)
        x = ops.conv_transpose(
            y,
            ops.cast(self.kernel, y.dtype),
            strides=self.strides,
            padding="valid",
            data_format=self.data_format,
        )
        crop, add = [slice(None)] * len(x.shape), [(0, 0)] * len(x.shape)
        first = 1 if self.data_format == "channels_last" else 2
        sizes = ops.shape(y)[first : first + self.rank]
        for i, (m, n) in enumerate(zip(sizes, self._restored(sizes))):
            full = (m - 1) * self.strides[i] + self.kernel_size[i]
            if self.padding == "same":
                before = (full - n) // 2
                crop[first + i] = slice(before, before + n)
            else:  # pixels behind the last window have not been seen
                add[first + i] = (0, n - full)
        x = x[tuple(crop)]
        seen = all(isinstance(n, int) and n == 0 for _, n in add)
        return x if seen else ops.pad(x, add)

    def position_matrix(self):
        *window, inputs, outputs = self.kernel.shape
        inputs *= math.prod(window)
        if tuple(window) != tuple(self.strides) or inputs != outputs:
            raise ValueError(
                "The determinant of a convolution is that of its kernel only "
                "if windows do not overlap and channels get as many as pixels "
                f"are lost. Received: layer '{self.name}' with kernel_size="
                f"{self.kernel_size}, strides={self.strides}, from {inputs} "
                f"numbers a window to {outputs}. Use `kernel_size=strides`, "
                "such as 1, or put couplings between such layers."
            )
        return ops.reshape(self.kernel, (inputs, outputs))

    def _invert(self, outputs):
        if self.use_bias:
            outputs = outputs - self._shaped_bias()
        return self.adjoint(outputs)

    def _shaped_bias(self):
        shape = [1] * (self.rank + 2)
        shape[self._channel_axis()] = self.filters
        return ops.reshape(ops.cast(self.bias, self.compute_dtype), shape)

    def compute_inverse_shape(self, output_shape):
        sizes = self._restored(self._sizes(output_shape))
        channels = self.kernel.shape[-2]
        if self.data_format == "channels_last":
            return (output_shape[0], *sizes, channels)
        return (output_shape[0], channels, *sizes)

    def get_config(self):
        return without_refused(super().get_config())

    def _restored(self, sizes):
        """Return the input sizes that `inverse` gives for these output sizes.

        Strides map several sizes to one. The choice is the size that the
        layer was built for, or else the one that leaves no pixel over.
        """
        restored = []
        for i, m in enumerate(sizes):
            s, k = self.strides[i], self.kernel_size[i]
            built_for, gave = self._input_sizes[i], self._output_sizes[i]
            if m is None:
                restored.append(None)
                continue
            n = m * s if self.padding == "same" else (m - 1) * s + k
            if isinstance(m, int):
                n = built_for if m == gave else n
            elif built_for is not None:  # in a graph of TensorFlow
                n = ops.where(ops.equal(m, gave), built_for, n)
            restored.append(n)
        return tuple(restored)

    def _check_sizes(self, shape):
        """Raise a `ValueError` for inputs that the inverse would resize."""
        sizes = self._sizes(shape)
        if not all(isinstance(n, int) for n in sizes):
            return
        restored = self._restored(self._sizes(self.compute_output_shape(shape)))
        if restored != sizes:
            raise ValueError(
                f"The strides {self.strides} of layer '{self.name}' do not "
                f"restore the size {sizes}: `inverse` would return "
                f"{restored}. Use sizes that the strides divide (up to the "
                "kernel, for `padding='valid'`), or build a layer for the "
                f"size. Received: shape={shape}, built for "
                f"{self._input_sizes}"
            )

    def _sizes(self, shape):
        last = self.data_format == "channels_last"
        return tuple(shape[1:-1] if last else shape[2:])

    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1
