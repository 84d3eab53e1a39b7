import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class PositionEmbedding(keras.layers.Layer):
    """Add a learned vector for each position to a sequence.

    Args:
        max_length: Integer, the number of positions. Sequences may be
            shorter.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        x: Tensor of shape `(batch, length, width)`.
        index: Integer or integer tensor, the position of the first entry.
    """

    def __init__(self, max_length, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.max_length = max_length

    def build(self, x_shape):
        self.table = self.add_weight(
            shape=(self.max_length, x_shape[-1]),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="table",
        )

    def call(self, x, index=0):
        self.check_length(x.shape[1])
        length, width = ops.shape(x)[1:]
        table = ops.convert_to_tensor(self.table)
        return x + ops.slice(table, (index, 0), (length, width))

    def check_length(self, length):
        if length is not None and length > self.max_length:
            raise ValueError(
                f"Layer '{self.name}' has {self.max_length} positions. "
                f"Received: a sequence of {length}. Shorten it, or build the "
                "model with more positions."
            )

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "max_length": self.max_length}
