"""Keras' implicit masks: read from a tensor, and hung on one."""

import keras


class _Hang(keras.layers.Layer):
    def __init__(self, name="mask"):
        super().__init__(autocast=False, name=name)
        self.built = self.supports_masking = True

    def call(self, x, mask=None):
        return x


class _Read(_Hang):
    def call(self, x, mask=None):
        return mask

    def compute_mask(self, x, previous_mask):
        return None


_hang, _read = _Hang(), _Read("mask_of")


def mask_of(x):
    """Return the mask of a tensor, or `None`."""
    if hasattr(x, "__dict__"):
        return getattr(x, "_keras_mask", None)
    return _read(x)  # tracers of JAX have theirs elsewhere


def with_mask(x, mask):
    """Hang a mask on `x`, unless it is `None`, and return `x`."""
    if mask is None:
        return x
    if not hasattr(x, "__dict__"):
        return _hang(x, mask=mask)
    x._keras_mask = mask
    return x
