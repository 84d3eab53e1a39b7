"""On which backends a test runs."""

import keras
import pytest

# For what is not about a backend. PyTorch has nothing to compile.
once = pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="the same on each backend: run on PyTorch, the quickest",
)


def first(*values, number=1):
    """All of them on PyTorch; elsewhere the first of them."""
    on_torch = keras.config.backend() == "torch"
    return values if on_torch else values[:number]
