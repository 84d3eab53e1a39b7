from keras_efficient.layers.reversible.base_invertible_resampling import (
    BaseInvertibleResampling,
)


class BaseInvertibleUpsampling(BaseInvertibleResampling):
    def build(self, input_shape):
        self.add_kernel(self._parts(self.upsampled_shape(input_shape))[2])

    def call(self, inputs):
        return self.upsample(inputs)

    def inverse(self, outputs):
        """Return the inputs for which the layer gives `outputs`.

        Args:
            outputs: A tensor, as `call` returns it.

        Returns:
            A tensor of the shape of the inputs.
        """
        self.check_inverse(outputs)
        return self.downsample(outputs)

    def compute_output_shape(self, input_shape):
        return self.upsampled_shape(input_shape)
