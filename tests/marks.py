"""On which backends a test runs."""

import keras
import pytest

# For what is not about a backend. PyTorch has nothing to compile.
once = pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="the same on each backend: run on PyTorch, the quickest",
)
