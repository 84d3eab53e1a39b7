"""How activations are kept between the forward and the backward pass."""

import functools

import keras
from keras import ops

from keras_efficient import backend

STORES = (None, "bfloat16", "host")


def check_store(store):
    """Raise a `ValueError` unless `store` is one of `STORES`."""
    if store not in STORES:
        raise ValueError(
            "`store` must be 'bfloat16', 'host' or `None`. Received: "
            f"store={store!r}"
        )


def put_away(x, store):
    """Return what is kept of a tensor, and the function that brings it back.

    Args:
        x: Tensor.
        store: One of `STORES`.
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    if store == "bfloat16" and dtype in ("float32", "float64"):
        return ops.cast(x, "bfloat16"), functools.partial(_cast, dtype=dtype)
    if store == "host":
        return backend.to_host(x)
    return x, _as_it_is


def _cast(x, dtype):
    return ops.cast(x, dtype)


def _as_it_is(x):
    return x
