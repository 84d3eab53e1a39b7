import keras

from keras_efficient.layers.core.base_reparametrized import BaseReparametrized


@keras.saving.register_keras_serializable(package="keras_efficient")
class Reparametrized(BaseReparametrized):
    """Call a layer with a function of its kernel instead of the kernel.

    ```
    y = layer(x; f(kernel), bias)
    ```

    Gradients flow through `f` to the kernel, and it is the kernel that is
    trained, decayed, regularized, constrained and saved: weights of the layer
    alone load into it, and its weights into the layer. `f` is computed in
    float32 (float64 for such a kernel), then cast to the dtype of the kernel.

    Regularizers and constraints of the layer see the kernel, not `f(kernel)`.
    What else the layer writes, such as seeds, is written as without the
    wrapper, and losses that it adds are added.

    Args:
        layer: A `keras.layers.Layer` with a `kernel` or `embeddings`: `Dense`,
            `EinsumDense`, `Embedding`, any convolution. Of a separable
            convolution the pointwise kernel is meant. Of a wrapper it is the
            kernel of the layer inside: `Reparametrized(Reparametrized(layer,
            f), g)` computes with `f(g(kernel))`.
        transform: Function from a tensor to a tensor of its shape, registered
            with `keras.saving.register_keras_serializable` so that a model
            can be saved; or a `keras.layers.Layer`, with weights of its own.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What `layer` is called on.
        training: Boolean, passed on to `layer`.

    Returns:
        What `layer` returns.

    Raises:
        TypeError: `layer` is not a layer, or `transform` not callable.
        ValueError: when it is built or called: `layer` has no kernel, has
            LoRA, is quantized, or assigns to its kernel; `transform` changes
            the shape.

    Example:

    ```python
    layer = keras_efficient.layers.Reparametrized(
        keras.layers.Dense(4), keras.ops.tanh
    )
    y = layer(keras.ops.ones((2, 3)))
    ```
    """

    def __init__(self, layer, transform, **kwargs):
        super().__init__(layer, **kwargs)
        if not callable(transform):
            raise TypeError(
                "`transform` must be a function of a tensor, or a layer. "
                f"Received: transform={transform}"
            )
        self.transform = transform

    def build_transform(self, shape):
        transform = self.transform
        if isinstance(transform, keras.layers.Layer) and not transform.built:
            transform.build(shape)

    def transform_kernel(self, kernel, training):
        return self.transform(kernel)

    def get_config(self):
        transform = keras.saving.serialize_keras_object(self.transform)
        return {**super().get_config(), "transform": transform}

    @classmethod
    def from_config(cls, config):
        transform = keras.saving.deserialize_keras_object(config["transform"])
        return super().from_config({**config, "transform": transform})
