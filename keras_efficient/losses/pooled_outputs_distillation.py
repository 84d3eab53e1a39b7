import keras
from keras import ops

POOLS = ("spatial", "width", "height", "gap", "channels", "pixels")


@keras.saving.register_keras_serializable(package="keras_efficient")
class PooledOutputsDistillation(keras.losses.Loss):
    """Hold feature maps near those of an older model, up to where things are.

    It keeps a network that learns new classes from forgetting the old ones; it
    saves no memory: the maps of both models are there.

    For maps of one stage, a of the old model and b of the new one, each sample:

    ```
    f(a) = pool(a^2) / |pool(a^2)|,      loss = |f(a) - f(b)|
    ```

    and `pool` sums over an axis of the maps: `"width"`, `"height"`,
    `"channels"`; `"spatial"` is width and height side by side, `"gap"` the
    mean over both, `"pixels"` none. The authors take the mean over stages,
    which is `loss_weights` in `compile`, and a factor of
    3 sqrt(classes seen / new classes). Where a is b the gradient is 0.

    Args:
        pool: See above. Defaults to `"spatial"`.
        normalize: Whether to divide by the norm. Defaults to `True`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        reduction: As for the losses of Keras.
        name: String.
        dtype: As for the losses of Keras; the default, float32, is wide enough
            for the squares of maps of 16 bits.

    Call arguments:
        y_true: Maps of the old model, of shape
            `(batch, height, width, channels)`.
        y_pred: Maps of the new model, of that shape.

    Raises:
        ValueError: `pool` is unknown, or maps are not of that shape.

    Example:

    ```python
    loss = keras_efficient.losses.PooledOutputsDistillation()
    old = keras.random.normal((2, 8, 8, 4))
    print(loss(old, old + 0.1))
    ```

    Reference:
        - [Douillard et al., 2020](https://arxiv.org/abs/2004.13513)
    """

    def __init__(
        self,
        pool="spatial",
        normalize=True,
        data_format=None,
        reduction="sum_over_batch_size",
        name="pooled_outputs_distillation",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if pool not in POOLS:
            raise ValueError(
                f"`pool` must be one of {POOLS}. Received: pool={pool!r}"
            )
        self.pool, self.normalize = pool, normalize
        self.data_format = data_format or keras.config.image_data_format()

    def call(self, y_true, y_pred):
        if len(y_pred.shape) != 4 or y_true.shape[1:] != y_pred.shape[1:]:
            raise ValueError(
                "Both maps must be of one shape, (batch, height, width, "
                f"channels). Received: {tuple(y_true.shape)} and "
                f"{tuple(y_pred.shape)}"
            )
        difference = self._features(y_true) - self._features(y_pred)
        return _norm(difference)[:, 0]

    def _features(self, x):
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 2, 3, 1))
        x = ops.square(x)
        pooled = {
            "pixels": lambda: [x],
            "channels": lambda: [ops.sum(x, axis=3)],
            "width": lambda: [ops.sum(x, axis=2)],
            "height": lambda: [ops.sum(x, axis=1)],
            "gap": lambda: [ops.mean(x, axis=(1, 2))],
            "spatial": lambda: [ops.sum(x, axis=1), ops.sum(x, axis=2)],
        }[self.pool]()
        batch = ops.shape(x)[0]
        flat = [ops.reshape(part, (batch, -1)) for part in pooled]
        flat = ops.concatenate(flat, axis=-1)
        if self.normalize:
            flat = flat / ops.maximum(_norm(flat), 1e-12)
        return flat

    def get_config(self):
        return {
            **super().get_config(),
            "pool": self.pool,
            "normalize": self.normalize,
            "data_format": self.data_format,
        }


def _norm(x):
    """The norm of each row, with a gradient of 0 where it is 0."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    is_zero = square == 0
    root = ops.sqrt(ops.where(is_zero, ops.ones_like(square), square))
    return ops.where(is_zero, ops.zeros_like(square), root)
