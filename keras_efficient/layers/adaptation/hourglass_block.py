import keras

from keras_efficient.backend.arguments import check_integers


@keras.saving.register_keras_serializable(package="keras_efficient")
class HourglassBlock(keras.layers.Layer):
    """Change a wide vector through a narrow layer.

    A network of such blocks has wide skip connections and few parameters; its
    skips are what takes memory, and a reversible run is what frees it:
    `AdditiveCoupling(HourglassBlock(32, skip=False))`.

    ```
    y = z + W_2 activation(W_1 norm(z))        W_1: width x bottleneck_dim
    ```

    Args:
        bottleneck_dim: Integer, less than the width.
        activation: Of the bottleneck. Defaults to `"gelu"`.
        skip: Boolean. Whether z is added. Defaults to `True`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., width)`.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `bottleneck_dim` is not less than the width.

    Example:

    ```python
    layer = keras_efficient.layers.HourglassBlock(8)
    y = layer(keras.random.normal((2, 64)))
    ```

    Reference:
        - [Hourglass MLPs, 2025](https://arxiv.org/abs/2510.01796)
    """

    def __init__(self, bottleneck_dim, activation="gelu", skip=True, **kwargs):
        check_integers(1, bottleneck_dim=bottleneck_dim)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.bottleneck_dim = bottleneck_dim
        self.activation = keras.activations.get(activation)
        self.skip = skip

    def build(self, input_shape):
        width = input_shape[-1]
        if self.bottleneck_dim >= width:
            raise ValueError(
                "`bottleneck_dim` must be less than the width. Received: "
                f"bottleneck_dim={self.bottleneck_dim}, width={width}"
            )
        shared = {"dtype": self.dtype_policy}
        self.norm = keras.layers.LayerNormalization(
            epsilon=1e-5, name="norm", **shared
        )
        self.narrow = keras.layers.Dense(
            self.bottleneck_dim, self.activation, name="narrow", **shared
        )
        self.widen = keras.layers.Dense(width, name="widen", **shared)
        self.norm.build(input_shape)
        self.narrow.build(input_shape)
        self.widen.build((*input_shape[:-1], self.bottleneck_dim))

    def call(self, inputs):
        y = self.widen(self.narrow(self.norm(inputs)))
        return inputs + y if self.skip else y

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "bottleneck_dim": self.bottleneck_dim,
            "activation": keras.activations.serialize(self.activation),
            "skip": self.skip,
        }
