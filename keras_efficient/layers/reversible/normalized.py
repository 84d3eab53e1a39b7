from keras import layers

# Where a function normalizes: its input, its output, or both.
NORMALIZATIONS = ("pre", "post", "peri")


class Normalized(layers.Layer):
    """A function with LayerNormalization before it, behind it, or both.

    ```
    pre:  f(norm(x))      post:  norm(f(x))      peri:  norm(f(norm(x)))
    ```
    """

    def __init__(
        self, normalization, epsilon, dropout, drop_rate=0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.normalization = normalization
        self.epsilon = epsilon
        self.rate = dropout
        self.drop_rate = drop_rate

    def build(self, x_shape):
        self.norm = self.output_norm = layers.Identity(dtype=self.dtype_policy)
        if self.normalization != "post":
            self.norm = self._layer_norm(x_shape)
        if self.normalization != "pre":
            self.output_norm = self._layer_norm(x_shape, "output_norm")
        self.dropout = layers.Dropout(self.rate, dtype=self.dtype_policy)
        self.drop = stochastic_depth(self.drop_rate, self.dtype_policy)

    def finish(self, y, training):
        """Return what is added to a stream."""
        y = self.dropout(self.output_norm(y), training=training)
        return self.drop(y, training=training)

    def _layer_norm(self, x_shape, name=None):
        norm = layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name=name
        )
        norm.build(x_shape)
        return norm


def stochastic_depth(rate, dtype):
    """Return a layer that drops the whole of some sequences of a batch."""
    return layers.Dropout(rate, (None, 1, 1), dtype=dtype)
