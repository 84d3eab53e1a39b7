import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.layers.adaptation.hopfield import Hopfield


@keras.saving.register_keras_serializable(package="keras_efficient")
class HopfieldPooling(keras.layers.Layer):
    """Pool a bag of examples into one vector by trained queries.

    It is for labels of bags, of which few members count (multiple instance
    learning); it does not say which.

    ```
    output = Hopfield(queries, stored=inputs), flattened
    ```

    Args:
        num_heads: Integer.
        key_dim: Integer, the size of a head.
        quantity: Integer, of queries. Defaults to `1`.
        scaling: Float, beta. Defaults to `None`, `1 / sqrt(key_dim)`.
        update_steps: Integer. Defaults to `1`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, number, width)`.
        mask: Boolean tensor of shape `(batch, number)`, true for members.

    Returns:
        Tensor of shape `(batch, quantity * width)`.

    Example:

    ```python
    layer = keras_efficient.layers.HopfieldPooling(2, 8)
    y = layer(keras.random.normal((2, 5, 16)))
    ```

    Reference:
        - [Ramsauer et al., 2020](https://arxiv.org/abs/2008.02217)
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        quantity=1,
        scaling=None,
        update_steps=1,
        **kwargs,
    ):
        check_integers(1, quantity=quantity)
        super().__init__(**kwargs)
        self.quantity = quantity
        self.hopfield = Hopfield(
            num_heads,
            key_dim,
            scaling,
            update_steps,
            dtype=self.dtype_policy,
            name="hopfield",
        )

    def build(self, input_shape):
        width = input_shape[-1]
        self.queries = self.add_weight(
            name="queries",
            shape=(1, self.quantity, width),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.hopfield.build((input_shape[0], self.quantity, width), input_shape)

    def call(self, inputs, mask=None):
        batch, _, width = ops.shape(inputs)
        queries = ops.broadcast_to(
            ops.cast(self.queries, inputs.dtype), (batch, self.quantity, width)
        )
        y = self.hopfield(queries, stored=inputs, stored_mask=mask)
        return ops.reshape(y, (batch, self.quantity * width))

    def compute_mask(self, inputs, previous_mask):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.quantity * input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.hopfield.num_heads,
            "key_dim": self.hopfield.key_dim,
            "quantity": self.quantity,
            "scaling": self.hopfield.scaling,
            "update_steps": self.hopfield.update_steps,
        }
