"""What standardized weights and their normalization promise."""

import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import BatchChannelNormalization
from keras_efficient.layers import WeightStandardization
from tests.marks import once
from tests.twins import batch

KERNELS = {  # and the axes of a filter
    "Dense": (lambda: layers.Dense(5), (8,), (0,)),
    "Conv1D": (lambda: layers.Conv1D(5, 3), (8, 4), (0, 1)),
    "Conv2D": (lambda: layers.Conv2D(5, 3), (8, 8, 4), (0, 1, 2)),
    "Conv2DTranspose": (
        lambda: layers.Conv2DTranspose(5, 3),
        (8, 8, 4),
        (0, 1, 3),
    ),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (8, 8, 4),
        (0, 1),
    ),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(5, 3), (8, 4), (0, 1)),
}


@once
@pytest.mark.parametrize("name", KERNELS)
def test_filters_have_mean_0_and_variance_1_and_no_scale(name):
    make, shape, axes = KERNELS[name]
    layer = WeightStandardization(make(), epsilon=1e-9)
    x = batch(2, *shape)
    y = ops.convert_to_numpy(layer(x))
    kernel = ops.convert_to_numpy(layer.transformed())
    np.testing.assert_allclose(kernel.mean(axes), 0.0, atol=1e-5)
    np.testing.assert_allclose(kernel.var(axes), 1.0, rtol=1e-4)
    for variable in layer.trainable_variables:
        if variable.name in ("kernel", "pointwise_kernel"):
            variable.assign(10 * variable)
    again = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(again, y, atol=1e-4 * np.abs(y).max())


@once
def test_axes_of_other_layers_are_asked_for():
    def make():
        return layers.EinsumDense("abc,cde->abde", (None, 2, 3))

    x = batch(2, 3, 4)
    with pytest.raises(ValueError, match="`axis` must be given"):
        WeightStandardization(make())(x)
    layer = WeightStandardization(make(), axis=(1, 2))
    layer(x)
    kernel = ops.convert_to_numpy(layer.transformed())
    np.testing.assert_allclose(kernel.mean(0), 0.0, atol=1e-6)
    with pytest.raises(ValueError, match="must have several weights"):
        WeightStandardization(layers.DepthwiseConv1D(1))(x)
    with pytest.raises(ValueError, match="`epsilon` must be"):
        WeightStandardization(layers.Dense(1), epsilon=0.0)


@once
def test_batch_statistics_are_those_of_batch_normalization():
    """In its first part, with groups of one channel over no places."""
    x = batch(6, 4)
    keras_layer = layers.BatchNormalization(epsilon=1e-5)
    layer = BatchChannelNormalization(1, estimate=False)
    normal = layers.GroupNormalization(1, epsilon=1e-5)
    for training in (True, False):
        expected = normal(keras_layer(x, training=training))
        actual = layer(x, training=training)
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (actual, expected)), atol=1e-4
        )
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            ops.convert_to_numpy(getattr(layer, name)),
            ops.convert_to_numpy(getattr(keras_layer, name)),
            rtol=1e-5,
        )
    with pytest.raises(ValueError, match="`groups` must divide"):
        BatchChannelNormalization(3)(x)


@once
def test_single_images_have_the_statistics_of_a_batch():
    """Each image moves them by its part: in all about as one batch does."""
    x = batch(64, 3, 3, 4)
    one = BatchChannelNormalization(2, momentum=0.9)
    eight = BatchChannelNormalization(2, momentum=0.9**8)
    for i in range(64):
        one(x[i : i + 1], training=True)
    for i in range(0, 64, 8):
        eight(x[i : i + 8], training=True)
    for name in ("moving_mean", "moving_variance"):
        a, b = (ops.convert_to_numpy(getattr(y, name)) for y in (one, eight))
        np.testing.assert_allclose(a, b, atol=0.15)
