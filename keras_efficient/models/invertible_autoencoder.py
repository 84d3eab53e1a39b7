import keras

from keras_efficient.layers import InvertibleSequential


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvertibleAutoencoder(keras.Model):
    """Encode and decode with one set of weights.

    The decoder is the inverted encoder: its layers run backwards, each as the
    inverse of itself, with the same kernel, bias and slopes.

    ```
    code = f_n(... f_1(x))
    x'   = f_1^-1(... f_n^-1(code))
    ```

    It has half the parameters of an ordinary autoencoder. The reconstruction
    loss drives the kernels to orthonormality, where the inverses are exact.

    `fit(x)` needs no targets: they are the inputs. Weight decay works against
    the method, as it shrinks the singular values that should be 1. Where the
    model is exact its gradients are rounding errors, of which Adam makes full
    steps: an `epsilon` above their size, such as `1e-5`, prevents that.

    Args:
        layers: List of invertible layers, see
            `keras_efficient.layers.InvertibleSequential`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: What the first layer takes.

    Returns:
        The reconstruction, of the shape of the inputs.

    Raises:
        TypeError: a layer has no `inverse`.
        ValueError: the inverse does not restore the shape of the inputs.

    Example:

    ```python
    model = keras_efficient.models.InvertibleAutoencoder([
        keras_efficient.layers.InvertibleDense(16),
        keras_efficient.layers.InvertibleLeakyReLU(),
        keras_efficient.layers.InvertibleDense(16),
    ])
    model.compile("adam", "mse")
    x = keras.random.normal((32, 16))
    model.fit(x, epochs=2)
    code = model.encode(x)
    x_again = model.decode(code)
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.encoder = InvertibleSequential(layers, name="encoder")

    def build(self, input_shape):
        if not self.encoder.built:
            self.encoder.build(input_shape)
        code_shape = self.encoder.compute_output_shape(input_shape)
        restored = self.encoder.compute_inverse_shape(code_shape)
        same = [None in (a, b) or a == b for a, b in zip(restored, input_shape)]
        if len(restored) != len(input_shape) or not all(same):
            raise ValueError(
                "The inverse of `layers` does not restore the shape of the "
                f"inputs. Received: inputs of shape {tuple(input_shape)}, "
                f"restored to {tuple(restored)}"
            )

    def call(self, inputs):
        return self.decode(self.encode(inputs))

    def encode(self, inputs):
        """Return the code of `inputs`."""
        return self.encoder(inputs)

    def decode(self, code):
        """Return the inputs that have this code."""
        return self.encoder.inverse(code)

    def linear(self, inputs):
        """Return D E `inputs`, the product of all weights and their adjoints.

        Args:
            inputs: A tensor; unit vectors for
                `keras_efficient.metrics.OrthonormalityError`.
        """
        return self.encoder.adjoint(self.encoder.linear(inputs))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        y = x if y is None else y
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y = x if y is None else y
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        encoder = self.encoder.get_config()
        return {**super().get_config(), "layers": encoder["layers"]}

    @classmethod
    def from_config(cls, config):
        layers = map(keras.saving.deserialize_keras_object, config["layers"])
        return cls(**{**config, "layers": list(layers)})
