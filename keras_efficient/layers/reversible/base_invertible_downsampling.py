from keras_efficient.layers.reversible.base_invertible_resampling import (
    BaseInvertibleResampling,
)


class BaseInvertibleDownsampling(BaseInvertibleResampling):
    def build(self, input_shape):
        self.add_kernel(self._parts(input_shape)[2])

    def call(self, inputs):
        return self.downsample(inputs)

    def inverse(self, outputs, output_size=None):
        """Return the inputs for which the layer gives `outputs`.

        Args:
            outputs: A tensor, as `call` returns it.
            output_size: Integer or a tuple of them, the spatial sizes to
                which the result is cropped where `padding="same"` had added
                zeros. Defaults to `None`, no cropping.

        Returns:
            A tensor of the shape of the (padded) inputs.
        """
        self.check_inverse(outputs)
        x = self.upsample(outputs)
        return x if output_size is None else self.crop(x, output_size)

    def compute_output_shape(self, input_shape):
        return self.downsampled_shape(input_shape)
