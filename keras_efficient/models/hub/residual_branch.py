import keras
from keras import ops

from keras_efficient.models.hub.residual_chain import parameters


@keras.saving.register_keras_serializable(package="keras_efficient")
class ResidualBranch(keras.layers.Layer):
    """What a layer of a backbone of KerasHub adds to its input.

    Args:
        layer: The layer.
        cache_shape: `(2, heads, size of a head)` of its keys and values, or
            `None`. Defaults to `None`.
        width: Integer, the size of the last axis of what it takes. Defaults
            to `None`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.
    """

    def __init__(self, layer, cache_shape=None, width=None, **kwargs):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.supports_masking = True
        self.layer = layer
        self.cache_argument = cache_shape and _cache_argument(layer)
        self.takes_a_pair = False
        if self.cache_argument:
            self._find_out(cache_shape, width)

    def build(self, x_shape):
        pass  # The layer comes with its weights.

    def takes(self, name):
        """Whether a call has an argument of this name."""
        if name in ("cache", "index"):
            return bool(self.cache_argument)
        return name in parameters(self.layer)

    def call(self, x, training=None, cache=None, index=None, **arguments):
        if cache is None:
            return self.layer(x, training=training, **arguments) - x
        if self.takes_a_pair:
            cache = tuple(ops.unstack(cache, 2, axis=1))
        arguments = {
            self.cache_argument: cache,
            f"{self.cache_argument}_update_index": index,
        }
        y, cache = self.layer(x, training=training, **arguments)
        return y - x, (ops.stack(cache, axis=1) if self.takes_a_pair else cache)

    def _find_out(self, shape, width):
        """Find out how the layer takes keys and values: as one tensor or two.

        By two tries without values; one that takes neither has no cache.
        """
        two, heads, size = shape
        x = keras.KerasTensor((3, 1, width), self.compute_dtype)
        cache = keras.KerasTensor((3, two, 4, heads, size), self.compute_dtype)
        for self.takes_a_pair in (False, True):
            try:
                _, made = self.compute_output_spec(x, cache=cache, index=0)
            # Each backend has errors of its own.
            except Exception:
                continue
            if made.shape == cache.shape:
                return
        self.cache_argument = None


def _cache_argument(layer):
    """Return the name of the cache of self-attention, or `None`."""
    names = parameters(layer)
    known = (
        name
        for name in names
        if name.endswith("cache") and f"{name}_update_index" in names
    )
    return next((n for n in known if not n.startswith("cross")), None)
