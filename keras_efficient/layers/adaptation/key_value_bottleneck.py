import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class KeyValueBottleneck(keras.layers.Layer):
    """Learn values of fixed keys, so that new examples leave old ones alone.

    It is for data whose classes come one after the other, behind an encoder
    that is frozen: no gradient reaches its input. It saves no memory.

    For each of `num_codebooks` fixed random projections P_c,

    ```
    k_c = argmin_k |x P_c - key_ck|^2            output = mean_c value_c,k_c
    ```

    `adapt` places the keys where data without labels are, by vector
    quantization with moving averages; then only values learn, those alone
    that are looked up.

    Args:
        num_codebooks: Integer.
        num_keys: Integer, of each codebook.
        value_dim: Integer, the width of the output: the number of classes, if
            there is no layer behind.
        key_dim: Integer.
        decay: Float, the part of a key that stays in a step of `adapt`.
            Defaults to `0.95`.
        seed: Integer, of projections and of the first keys. Defaults to `0`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., width)`.

    Returns:
        Tensor of shape `(batch, ..., value_dim)`.

    Example:

    ```python
    layer = keras_efficient.layers.KeyValueBottleneck(4, 16, 10, 8)
    x = keras.random.normal((100, 32))
    layer.adapt(x)
    y = layer(x)
    ```

    Deviation: keys start from data, so that none is dead at the start.

    Reference:
        - [Träuble et al., 2022](https://arxiv.org/abs/2207.11240)
    """

    def __init__(
        self,
        num_codebooks,
        num_keys,
        value_dim,
        key_dim,
        decay=0.95,
        seed=0,
        **kwargs,
    ):
        check_integers(1, num_codebooks=num_codebooks, num_keys=num_keys)
        check_integers(1, value_dim=value_dim, key_dim=key_dim)
        check_integers(0, seed=seed)
        check_numbers("[0, 1)", decay=decay)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_codebooks = num_codebooks
        self.num_keys = num_keys
        self.value_dim = value_dim
        self.key_dim = key_dim
        self.decay = decay
        self.seed = seed

    def build(self, input_shape):
        width = input_shape[-1]
        books, keys = self.num_codebooks, self.num_keys
        normal = keras.initializers.RandomNormal
        self.projection = self.add_weight(
            name="projection",
            shape=(books, width, self.key_dim),
            initializer=normal(stddev=width**-0.5, seed=self.seed),
            trainable=False,
            autocast=False,
        )
        self.keys = self.add_weight(
            name="keys",
            shape=(books, keys, self.key_dim),
            initializer=normal(stddev=1.0, seed=self.seed + 1),
            trainable=False,
            autocast=False,
        )
        self.values = self.add_weight(
            name="values",
            shape=(books * keys, self.value_dim),
            initializer="zeros",
        )

    def call(self, inputs):
        places = self.look_up(inputs)
        first = self.num_keys * ops.arange(self.num_codebooks, dtype="int32")
        return ops.mean(ops.take(self.values, places + first, axis=0), axis=-2)

    def look_up(self, inputs):
        """Return the number of the key in each codebook.

        Args:
            inputs: As in a call.

        Returns:
            Integer tensor of shape `(batch, ..., num_codebooks)`.
        """
        x = ops.stop_gradient(ops.cast(inputs, self.keys.dtype))
        x = ops.einsum("...d,cdk->...ck", x, self.projection)
        inner = ops.einsum("...ck,cnk->...cn", x, self.keys)
        size = ops.sum(ops.square(self.keys), -1)
        return ops.cast(ops.argmin(size - 2.0 * inner, axis=-1), "int32")

    def adapt(self, data, batch_size=256, epochs=1):
        """Move the keys to where data are.

        Args:
            data: Array of shape `(examples, ..., width)`, what the layer is
                called on.
            batch_size: Integer. Defaults to `256`.
            epochs: Integer. Defaults to `1`.
        """
        data = as_array(data, "float32")
        data = data.reshape(-1, data.shape[-1])
        if not self.built:
            self.build(data.shape)
        projection = ops.convert_to_numpy(self.projection)
        rng = np.random.default_rng(self.seed)
        first = rng.choice(
            len(data), self.num_keys, replace=len(data) < self.num_keys
        )
        keys = np.einsum("nd,cdk->cnk", data[first], projection)
        sums, counts = keys.copy(), np.ones(keys.shape[:2], "float32")
        for _ in range(epochs):
            order = rng.permutation(len(data))
            for start in range(0, len(data), batch_size):
                x = data[order[start : start + batch_size]]
                self._step(x @ projection, keys, sums, counts)
        self.keys.assign(keys)

    def _step(self, x, keys, sums, counts):
        """One step of every codebook, in place; x is `(books, n, key_dim)`."""
        stays = self.decay
        for book, points in enumerate(x):
            near = (keys[book] ** 2).sum(-1) - 2.0 * points @ keys[book].T
            chosen = np.eye(self.num_keys, dtype="float32")[near.argmin(-1)]
            counts[book] = stays * counts[book] + (1 - stays) * chosen.sum(0)
            sums[book] = stays * sums[book] + (1 - stays) * chosen.T @ points
            moved = chosen.any(0)
            keys[book, moved] = (sums[book] / counts[book][:, None])[moved]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.value_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_codebooks": self.num_codebooks,
            "num_keys": self.num_keys,
            "value_dim": self.value_dim,
            "key_dim": self.key_dim,
            "decay": self.decay,
            "seed": self.seed,
        }
