import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.adaptation.hopfield import Hopfield


@keras.saving.register_keras_serializable(package="keras_efficient")
class HopfieldLayer(Hopfield):
    """Look inputs up among stored patterns that are trained.

    It is a memory of prototypes, or a dense layer whose units compete; it
    does not store training examples by itself.

    ```
    output = Hopfield(inputs, stored=patterns)
    ```

    Args:
        num_heads: Integer.
        key_dim: Integer, the size of a head.
        quantity: Integer, of patterns.
        scaling: Float, beta. Defaults to `None`, `1 / sqrt(key_dim)`.
        update_steps: Integer. Defaults to `1`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: State patterns, of shape `(batch, length, width)`.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: a number is outside its range.

    Example:

    ```python
    layer = keras_efficient.layers.HopfieldLayer(2, 8, quantity=16)
    y = layer(keras.random.normal((2, 5, 16)))
    ```

    Reference:
        - [Ramsauer et al., 2020](https://arxiv.org/abs/2008.02217)
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        quantity,
        scaling=None,
        update_steps=1,
        **kwargs,
    ):
        check_integers(1, quantity=quantity)
        super().__init__(num_heads, key_dim, scaling, update_steps, **kwargs)
        self.quantity = quantity

    def build(self, input_shape):
        # One set of patterns, for all of the batch.
        shape = (1, self.quantity, input_shape[-1])
        self.patterns = self.add_weight(
            name="patterns",
            shape=shape,
            initializer=keras.initializers.RandomNormal(stddev=1.0),
        )
        super().build(input_shape, shape)

    def call(self, inputs):
        return super().call(inputs, ops.convert_to_tensor(self.patterns))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "quantity": self.quantity}
