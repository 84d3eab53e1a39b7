import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class Hopfield(keras.layers.Layer):
    """Retrieve stored patterns by what is like them, in one step or several.

    It is attention whose keys answer `update_steps` times. More steps cost time
    and memory in proportion; they find single patterns where `scaling` is
    large enough for that, and blur where it is not.

    With state patterns R (queries), stored patterns Y and LayerNorm of both,
    in each head

    ```
    xi = R W_q        K = Y W_k        V = Y W_v
    xi <- softmax(beta xi K^T) K                   update_steps - 1 times
    output = softmax(beta xi K^T) V W_o
    ```

    Args:
        num_heads: Integer.
        key_dim: Integer, the size of a head.
        scaling: Float, beta. Defaults to `None`, `1 / sqrt(key_dim)`.
        update_steps: Integer, 1 for attention. Defaults to `1`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: State patterns, of shape `(batch, length, width)`.
        stored: Stored patterns, of shape `(batch, number, stored width)`.
            Defaults to `None`, the inputs.
        mask: Boolean tensor of shape `(batch, length)`; without `stored`, what
            may be retrieved.
        stored_mask: Boolean tensor of shape `(batch, number)`, true for stored
            patterns that may be retrieved.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: `update_steps` is not 1 or more.

    Example:

    ```python
    layer = keras_efficient.layers.Hopfield(2, 8, update_steps=3)
    y = layer(keras.random.normal((2, 5, 16)))
    ```

    Deviation: the number of steps is fixed, where the paper iterates until
    nothing changes: a loop without a known end has no gradient on XLA.

    Reference:
        - [Ramsauer et al., 2020](https://arxiv.org/abs/2008.02217)
    """

    def __init__(
        self, num_heads, key_dim, scaling=None, update_steps=1, **kwargs
    ):
        check_integers(1, num_heads=num_heads, key_dim=key_dim)
        check_integers(1, update_steps=update_steps)
        if scaling is not None:
            check_numbers("(0, inf)", scaling=scaling)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.scaling = scaling
        self.update_steps = update_steps

    def build(self, inputs_shape, stored_shape=None):
        stored_shape = stored_shape or inputs_shape
        shared = {"dtype": self.dtype_policy}
        self.state_norm, self.stored_norm = (
            keras.layers.LayerNormalization(name=name, **shared)
            for name in ("state_norm", "stored_norm")
        )
        width = self.num_heads * self.key_dim
        self.query, self.key, self.value = (
            keras.layers.Dense(width, name=name, **shared)
            for name in ("query", "key", "value")
        )
        self.projection = keras.layers.Dense(
            inputs_shape[-1], name="projection", **shared
        )
        self.state_norm.build(inputs_shape)
        self.query.build(inputs_shape)
        for layer in (self.stored_norm, self.key, self.value):
            layer.build(stored_shape)
        self.projection.build((*inputs_shape[:-1], width))

    def call(self, inputs, stored=None, mask=None, stored_mask=None):
        if stored is None:
            stored, stored_mask = inputs, mask
        stored = self.stored_norm(stored)
        state = self._heads(self.query(self.state_norm(inputs)))
        key = self._heads(self.key(stored))
        value = self._heads(self.value(stored))
        for _ in range(self.update_steps - 1):
            state = self._retrieve(state, key, key, stored_mask)
        y = self._retrieve(state, key, value, stored_mask)
        y = ops.reshape(
            ops.transpose(y, (0, 2, 1, 3)),
            (*ops.shape(y)[:1], -1, self.num_heads * self.key_dim),
        )
        return self.projection(y)

    def _heads(self, x):
        x = ops.reshape(x, (*ops.shape(x)[:2], self.num_heads, self.key_dim))
        return ops.transpose(x, (0, 2, 1, 3))

    def _retrieve(self, state, key, value, mask):
        """Take the softmax over what is stored, in float32."""
        beta = self.scaling or 1.0 / math.sqrt(self.key_dim)
        scores = ops.matmul(state, ops.transpose(key, (0, 1, 3, 2)))
        wide = keras.backend.result_type(scores.dtype, "float32")
        scores = beta * ops.cast(scores, wide)
        if mask is not None:
            seen = ops.cast(mask, "bool")[:, None, None]
            scores = ops.where(seen, scores, -1e9)
        parts = ops.cast(ops.softmax(scores), value.dtype)
        return ops.matmul(parts, value)

    def compute_output_shape(self, inputs_shape, stored_shape=None):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "scaling": self.scaling,
            "update_steps": self.update_steps,
        }
