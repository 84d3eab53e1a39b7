import keras
from keras import ops

from keras_efficient.autodiff.capture import accepted
from keras_efficient.autodiff.record import Record

KERNELS = ("kernel", "embeddings", "pointwise_kernel")


class BaseReparametrized(keras.layers.Wrapper):
    """Base class: call a layer with a function of its kernel.

    A subclass writes `transform_kernel(kernel, training)`, and in its
    `get_config` what it needs besides the layer. It may have weights and
    state of its own, which `build_transform(shape)` makes.

    ```
    y = layer(x; f(kernel), bias)        dL/dkernel = dL/df(kernel) f'(kernel)
    ```

    The variable that is trained, decayed, regularized, constrained and saved
    is the kernel itself. f is computed in float32 or float64.

    Args:
        layer: A `keras.layers.Layer` with a `kernel` or `embeddings`; of a
            separable convolution, the pointwise kernel is meant. Of a wrapper
            it is that of the layer inside, so that wrappers can be nested:
            the outer function comes first.
    """

    def __init__(self, layer, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "`layer` must be a `keras.layers.Layer`. "
                f"Received: {layer} (of type {type(layer)})"
            )
        super().__init__(layer, autocast=False, **kwargs)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        super().build(input_shape)
        self.build_transform(tuple(kernel_of(self.layer).shape))

    def build_transform(self, shape):
        """Make the weights of the function, for a kernel of this shape."""

    def transform_kernel(self, kernel, training):
        """Return what the layer is called with instead of its kernel.

        Args:
            kernel: float32 or float64 tensor.
            training: Boolean or `None`.
        """
        raise NotImplementedError

    def transformed(self, training=False):
        """Return the kernel that the layer is called with, a tensor."""
        variable = kernel_of(self.layer)
        kernel = ops.convert_to_tensor(variable)
        dtype = keras.backend.result_type(variable.dtype, "float32")
        kernel = self.transform_kernel(ops.cast(kernel, dtype), training)
        if tuple(kernel.shape) != tuple(variable.shape):
            raise ValueError(
                f"The function of the kernel of '{self.layer.name}' must keep "
                f"its shape, {tuple(variable.shape)}. It returned a tensor of "
                f"shape {tuple(kernel.shape)}."
            )
        return ops.cast(kernel, variable.dtype)

    def call(self, inputs, training=None):
        variable = kernel_of(self.layer)
        scope = Record([(variable, self.transformed(training))])
        with scope:
            around = scope.original_scope
            if around is not None:  # which finds the layer of each loss
                scope.losses = around.losses
            options = accepted(self.layer, {"training": training})
            outputs = self.layer(inputs, **options)
        if id(variable) in scope.written:
            raise ValueError(
                f"Layer '{self.layer.name}' assigns to its kernel, which would "
                "put the function of the kernel in its place. Use the layer "
                "without the wrapper."
            )
        for key, written in scope.written.items():
            written.assign(scope.state_mapping[key])
        if around is None:
            for loss in scope.losses:
                self.add_loss(loss)
        return outputs

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs, training=None):
        """What the layer returns, in the dtype that it has."""
        options = accepted(self.layer, {"training": training})
        y = self.layer(inputs, **options)
        return keras.KerasTensor(y.shape, y.dtype)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def innermost(layer):
    """Return the layer inside of all wrappers."""
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    return layer


def kernel_of(layer):
    """Return the variable that is the kernel of a built layer.

    Raises:
        ValueError: There is none, or the layer computes with another tensor,
            as with LoRA or when it is quantized.
    """
    inner = innermost(layer)
    if getattr(inner, "lora_enabled", False):
        raise ValueError(
            f"Layer '{inner.name}' has LoRA, whose kernel is a sum. Wrap the "
            "layer without it, or merge the adapters first."
        )
    if getattr(inner, "quantization_mode", None):
        raise ValueError(
            f"Layer '{inner.name}' is quantized ('{inner.quantization_mode}'): "
            "its kernel is made of codes. Wrap the layer before."
        )
    for name in KERNELS:
        variable = getattr(inner, name, None)
        if isinstance(variable, keras.Variable):
            return variable
    raise ValueError(
        f"Layer '{inner.name}', a {type(inner).__name__}, has no kernel. Wrap "
        "a layer with one of the variables "
        f"{KERNELS}: Dense, EinsumDense, Embedding or a convolution."
    )
