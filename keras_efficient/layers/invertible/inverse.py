import keras

from keras_efficient.layers.invertible.invertible_sequential import (
    inverse_shape,
)
from keras_efficient.layers.invertible.invertible_sequential import inverse_spec


@keras.saving.register_keras_serializable(package="keras_efficient")
class Inverse(keras.layers.Layer):
    """Apply the inverse of a layer, with the variables of that layer.

    It puts `layer.inverse` into a functional model. The variables are those
    of `layer`: they count once in `model.weights`, are once in a `.keras`
    file, and are shared again after loading. (`keras.models.clone_model` and
    `Model.from_config` copy every layer on its own, the one in here too.)

    Args:
        layer: A built layer with a method `inverse`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor, as `layer` returns it.

    Returns:
        A tensor, as `layer` takes it, in the dtype of `layer`.

    Raises:
        TypeError: `layer` has no `inverse`.
        ValueError: `layer` is not built when it is called.

    Example:

    ```python
    dense = keras_efficient.layers.InvertibleDense(16)
    inputs = keras.Input((16,))
    code = dense(inputs)
    outputs = keras_efficient.layers.Inverse(dense)(code)
    model = keras.Model(inputs, outputs)
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(self, layer, **kwargs):
        super().__init__(autocast=False, **kwargs)  # `layer` casts
        if not callable(getattr(layer, "inverse", None)):
            raise TypeError(
                "`layer` must have a method `inverse`, such as "
                "`keras_efficient.layers.InvertibleDense`. Received: "
                f"{layer} (of type {type(layer)})"
            )
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            raise ValueError(
                f"Layer '{self.layer.name}' has to be built before its "
                "inverse is used. Call it on inputs once, or call "
                "`build(input_shape)`."
            )

    def call(self, inputs):
        return self.layer.inverse(inputs)

    def inverse(self, outputs):
        """Apply the layer itself, the inverse of its inverse."""
        return self.layer(outputs)

    def compute_output_shape(self, input_shape):
        return inverse_shape(self.layer, input_shape)

    def compute_output_spec(self, inputs):
        return inverse_spec(self.layer, inputs)

    def compute_inverse_spec(self, outputs):
        return self.layer.compute_output_spec(outputs)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
