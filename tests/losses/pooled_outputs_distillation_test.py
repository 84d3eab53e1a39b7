"""Pooled outputs against NumPy, and the gradient where maps agree."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient.losses import PooledOutputsDistillation
from keras_efficient.losses.pooled_outputs_distillation import POOLS
from tests.marks import once

A, B = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype("float32")


def by_numpy(a, b, pool):
    def features(x):
        x = x.astype("float64") ** 2
        parts = {
            "pixels": [x],
            "channels": [x.sum(3)],
            "width": [x.sum(2)],
            "height": [x.sum(1)],
            "gap": [x.mean((1, 2))],
            "spatial": [x.sum(1), x.sum(2)],
        }[pool]
        flat = np.concatenate([p.reshape(len(x), -1) for p in parts], -1)
        return flat / np.linalg.norm(flat, axis=-1, keepdims=True)

    return np.linalg.norm(features(a) - features(b), axis=-1)


@pytest.mark.parametrize("pool", POOLS)
def test_each_pool_is_that_of_numpy(pool):
    loss = PooledOutputsDistillation(pool, reduction="none")
    expected = by_numpy(A, B, pool)
    found = ops.convert_to_numpy(loss(A, B))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    scaled = ops.convert_to_numpy(loss(A, 30 * B))
    np.testing.assert_allclose(scaled, expected, rtol=1e-4)
    first = PooledOutputsDistillation(
        pool, data_format="channels_first", reduction="none"
    )
    turned = [np.moveaxis(x, -1, 1) for x in (A, B)]
    np.testing.assert_allclose(
        ops.convert_to_numpy(first(*turned)), expected, rtol=1e-5
    )


def test_the_gradient_where_maps_agree_is_zero():
    loss = PooledOutputsDistillation()
    for b, is_zero in ((A, True), (B, False), (0 * A, True)):
        old = A if is_zero and b.any() else (0 * A if is_zero else A)
        value, pullback = backend.vjp(
            lambda x: loss(old, x), ops.convert_to_tensor(b)
        )
        (gradient,) = pullback(ops.ones_like(value))
        gradient = ops.convert_to_numpy(gradient)
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() == 0) == is_zero


def test_it_trains_in_sixteen_bits():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential(
            [keras.Input((4, 5, 2)), keras.layers.Conv2D(2, 3, padding="same")]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", PooledOutputsDistillation())
    # The squares of these overflow in float16.
    losses = model.fit(400 * A, 400 * B, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[1] < losses[0]


@once
def test_settings_and_bad_arguments():
    loss = PooledOutputsDistillation("gap", False, "channels_first")
    again = PooledOutputsDistillation.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    assert (again.pool, again.normalize) == ("gap", False)
    with pytest.raises(ValueError, match="pool"):
        PooledOutputsDistillation("depth")
    with pytest.raises(ValueError, match="one shape"):
        PooledOutputsDistillation()(A[:, 1:], B)
