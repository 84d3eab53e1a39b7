"""Invertible layers whose parts compute in several dtypes."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Inverse
from keras_efficient.layers import InvertibleDense
from keras_efficient.layers import InvertibleDownsampling1D
from keras_efficient.layers import InvertibleLeakyReLU
from keras_efficient.layers import InvertibleResidual
from keras_efficient.layers import InvertibleSequential
from keras_efficient.layers import ReversibleParallel
from keras_efficient.layers import ReversibleSequence
from tests.twins import batch

POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]


def dense(policy, **arguments):
    return InvertibleDense(8, dtype=policy, **arguments)


def inverse(layer, policy):
    layer.build((None, 8))
    return Inverse(layer, dtype=policy)


def residual(own, inner):
    layer = dense(inner, use_bias=False, kernel_initializer="zeros")
    return InvertibleResidual(layer, dtype=own)


def stack(own, *layers):
    return InvertibleSequential(layers, dtype=own)


def coupling(inner):
    return AdditiveCoupling(keras.layers.Dense(4, dtype=inner))


# From the policy of a layer and that of one inside, and the policies whose
# compute dtypes the outputs and the inverse have.
LAYERS = {
    "residual": (residual, lambda own, inner: (own, own)),
    "last": (
        lambda own, inner: stack(own, dense(own), dense(inner)),
        lambda own, inner: (inner, own),
    ),
    "first": (
        lambda own, inner: stack(own, dense(inner), InvertibleLeakyReLU()),
        lambda own, inner: ("float32", inner),
    ),
    "coupling": (
        lambda own, inner: stack(own, dense(own), coupling(inner)),
        lambda own, inner: ("float32", own),
    ),
    "residual in a stack": (
        lambda own, inner: stack(own, residual(own, inner)),
        lambda own, inner: (own, own),
    ),
    "inverse": (
        lambda own, inner: inverse(dense(inner), own),
        lambda own, inner: (inner, inner),
    ),
    "inverse of a stack": (
        lambda own, inner: inverse(stack(own, dense(inner), dense(own)), own),
        lambda own, inner: (inner, own),
    ),
    "run": (
        lambda own, inner: ReversibleSequence([coupling(inner)], dtype=own),
        lambda own, inner: ("float32", "float32"),
    ),
}


@pytest.mark.parametrize("own", POLICIES)
@pytest.mark.parametrize("inner", POLICIES)
@pytest.mark.parametrize("kind", LAYERS.values(), ids=LAYERS)
def test_symbols_have_the_dtype_of_values(kind, own, inner):
    make, dtypes = kind
    expected = [
        keras.dtype_policies.get(policy).compute_dtype
        for policy in dtypes(own, inner)
    ]
    layer, x = make(own, inner), batch(4, 8)
    symbol = layer(keras.Input((8,)))
    y = layer(x)
    again = layer.inverse(y)
    found = [symbol.dtype, *[standardized(t) for t in (y, again)]]
    assert found == [expected[0], *expected]
    assert symbol.shape[1:] == y.shape[1:]
    error = ops.convert_to_numpy(ops.cast(again, "float32")) - x
    assert np.abs(error).max() < (1e-5 if own == inner == "float32" else 0.1)


def standardized(x):
    return keras.backend.standardize_dtype(x.dtype)


def test_a_stack_does_not_round_what_its_layers_take_in_float32():
    layer = stack("mixed_float16", coupling("float32"))
    x = np.full((1, 8), 1 + 2.0**-14, "float32")
    again = layer.inverse(layer(x))
    np.testing.assert_allclose(ops.convert_to_numpy(again), x, rtol=1e-6)


def test_a_stack_takes_the_streams_that_its_layers_take():
    layer = stack("mixed_float16", coupling("float32"))
    x = [batch(4, 4), batch(4, 4)]
    symbols = Inverse(layer)(layer([keras.Input((4,)), keras.Input((4,))]))
    assert [symbol.shape for symbol in symbols] == [(None, 4), (None, 4)]
    for a, b in zip(layer.inverse(layer(x)), x):
        np.testing.assert_allclose(ops.convert_to_numpy(a), b, atol=1e-6)


def test_a_resampling_under_a_mixed_policy():
    down = InvertibleDownsampling1D(dtype="mixed_bfloat16")
    layer = stack("float32", down)
    symbol = layer(keras.Input((4, 2)))
    y = layer(batch(2, 4, 2))
    assert symbol.dtype == standardized(y) == "bfloat16"
    assert Inverse(layer)(symbol).dtype == standardized(layer.inverse(y))


def test_streams_of_two_dtypes_are_refused():
    block = AdditiveCoupling(keras.layers.Dense(4), dtype="float32")
    for kind in (ReversibleSequence, ReversibleParallel):
        with pytest.raises(ValueError, match="streams of one dtype"):
            kind([block], dtype="float64")
        kind([block], dtype="mixed_float16")
