"""Binary weights and reversed gradients, besides their equations."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import layers
from keras_efficient.ops import binarize
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once

POINTS = np.array([-2, -1.2, -0.5, -0.05, 0, 0.05, 0.3, 0.9, 1.6], "float32")
SLOPES = {
    "identity": np.ones(9),
    "ste": [0, 0, 1, 1, 1, 1, 1, 1, 0],
    "polynomial": [0, 0, 1, 1.9, 2, 1.9, 1.4, 0.2, 0],
    # 1/2 |x|^(-1/2), the line to 0.1^(1/2), or 0
    "reste": [
        *(0, 0.5 / 1.2**0.5, 0.5 / 0.5**0.5),
        *[10 * 0.1**0.5] * 3,
        *(0.5 / 0.3**0.5, 0.5 / 0.9**0.5, 0),
    ],
}


class AllEstimators(keras.layers.Layer):
    def call(self, x, training=None):
        return [binarize(x[i], name, 2.0) for i, name in enumerate(SLOPES)]


def test_surrogate_gradients_at_nine_points():
    model = AllEstimators()
    model.built = True
    signs = np.where(POINTS >= 0, 1.0, -1.0)
    values, (d_x,), _ = gradients(model, [np.stack([POINTS] * 4)])
    # The gradient of a sum of squares is twice the value times the slope.
    for y, d, slope in zip(values, d_x, SLOPES.values(), strict=True):
        np.testing.assert_array_equal(y, signs)
        np.testing.assert_allclose(d / 2 / signs, slope, atol=1e-5)


@once
@pytest.mark.parametrize("scale", ["tensor", "filter", "learned"])
@pytest.mark.parametrize("estimator", ["ste", "reste", "biper"])
@pytest.mark.parametrize(
    ("inner", "shape"),
    [
        (lambda: keras.layers.Dense(3), (2, 5)),
        (lambda: keras.layers.DepthwiseConv2D(3), (1, 4, 4, 3)),
    ],
)
def test_a_kernel_of_two_values_takes_one_bit_a_weight(
    inner, shape, estimator, scale
):
    inner = inner()
    layer = layers.Binarized(inner, estimator, scale)
    layer(np.ones(shape, "float32"))
    kernel = to_numpy([layer.transformed()])[0]
    bits, size = layer.packed_kernel()
    assert bits.nbytes == -(-kernel.size // 8)
    signs = np.unpackbits(bits)[: kernel.size].reshape(kernel.shape) * 2.0 - 1
    np.testing.assert_allclose(signs * size, kernel, rtol=1e-6)
    assert size.size == (1 if scale == "tensor" else 3)  # filters


@once
def test_schedules_of_estimators():
    layer = layers.Binarized(keras.layers.Dense(3), "biper", steps=2)
    x = np.ones((2, 5), "float32")
    seen = []
    for _ in range(3):
        layer(x, training=True)
        before = int(layer.step)
        kernel = to_numpy([layer.transformed(training=True)])[0]
        layer.step.assign(before)
        seen.append(len(np.unique(np.abs(kernel).round(5))) == 1)
    assert seen == [False, True, True]
    binary = to_numpy([layer.transformed()])[0]
    assert len(np.unique(np.abs(binary).round(5))) == 1


@once
def test_reversal_inside_recompute_and_with_a_ramp():
    x = POINTS[None]
    for outer in (lambda f: f, layers.Recompute):
        layer = outer(layers.GradientReversal(2.0))
        (y,), (d_x,), _ = gradients(layer, [x])
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(d_x, -2.0 * 2 * x)
    ramp = layers.GradientReversal(3.0, ramp_steps=2)
    for factor in (0.0, 3 * (2 / (1 + np.exp(-5)) - 1), 3.0, 3.0):
        _, (d_x,), _ = gradients(ramp, [x])
        np.testing.assert_allclose(d_x, -factor * 2 * x, atol=2e-3)
    step = int(ramp.step)
    ramp(x, training=False)
    assert int(ramp.step) == step == 4


@once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: layers.Binarized(d, "sign"), "`estimator` must be one"),
        (lambda d: layers.Binarized(d, scale="row"), "`scale` must be one"),
        (lambda d: layers.GradientReversal(1.0, 0), "`ramp_steps` must be"),
        (lambda d: binarize(ops.ones(2), "biper"), "`estimator` must be one"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(keras.layers.Dense(2))
