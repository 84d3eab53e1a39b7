"""Depthwise convolutions, bottlenecks and their couplings by themselves."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.layers import ConvNeXtBlock
from keras_efficient.layers import DepthwiseConv3D
from keras_efficient.layers import MBConv
from keras_efficient.layers import ReversibleMBConv
from tests.compilers import compiled
from tests.gradients import to_numpy
from tests.marks import once
from tests.models import vision_reference as reference
from tests.twins import batch

FORMATS = ("channels_last", "channels_first")


def check(layer, expected, x):
    """Compare with NumPy, in both data formats."""
    first = layer.data_format == "channels_first"
    inputs = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if first else x
    layer.build(inputs.shape)
    reference.randomize(layer)
    y = to_numpy([compiled(layer)(ops.convert_to_tensor(inputs))])[0]
    assert layer.compute_output_shape(inputs.shape) == y.shape
    y = np.moveaxis(y, 1, -1) if first else y
    np.testing.assert_allclose(y, expected(layer, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_depthwise_conv_3d(kernel_size, strides, data_format):
    layer = DepthwiseConv3D(kernel_size, strides, data_format=data_format)
    check(layer, reference.depthwise, batch(2, 5, 6, 7, 3))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("normalization", ["batch", "instance"])
@pytest.mark.parametrize("rank", [2, 3])
def test_mb_conv(rank, normalization, data_format):
    if data_format == "channels_first" and (
        keras.config.backend() == "tensorflow"
    ):
        pytest.skip("TensorFlow has no such convolutions on CPU.")
    for strides, expansion, se_ratio in ((1, 3, 0.5), (2, 1, 0)):
        layer = MBConv(
            5,
            3,
            strides,
            expansion,
            se_ratio,
            0.5,
            normalization,
            rank=rank,
            data_format=data_format,
        )
        check(layer, reference.mb_conv, batch(2, *(4, 5, 6)[:rank], 3))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_symmetric_padding(kernel_size):
    for strides in (1, 2, 4):
        layer = MBConv(5, kernel_size, strides, padding="symmetric")
        check(layer, reference.mb_conv, batch(2, 8, 9, 3))


@once  # other tests of JAX draw by NumPy
def test_first_values_are_those_of_the_paper():
    """Normal, of variance 2 / (channels of the output * pixels)."""
    layer = MBConv(64, 5, expansion=2)
    layer.build((None, 8, 8, 96))
    for kernel, channels in (
        (layer.expand.kernel, 192),
        (layer.depthwise.kernel, 192 * 25),
        (layer.project.kernel, 64),
    ):
        deviation = np.std(to_numpy([kernel])[0])
        np.testing.assert_allclose(deviation, (2 / channels) ** 0.5, rtol=0.08)


@pytest.mark.parametrize("first", [1, 2])
def test_a_coupling_is_that_of_two_bottlenecks(first):
    layer = ReversibleMBConv(7, se_ratio=0.5, first=first)
    x = batch(2, 5, 5, 7)
    layer(x)
    reference.randomize(layer)
    y = to_numpy([layer(x)])[0]
    expected = reference.couple(layer, x)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(to_numpy([layer.inverse(y)])[0], x, atol=1e-3)


def test_stochastic_depth_drops_whole_examples():
    mb_conv = MBConv(4, drop_rate=0.5)
    block = ConvNeXtBlock(3, layer_scale=1.0, drop_rate=0.5)
    x = batch(64, 4, 4, 4)
    for layer, skip in ((mb_conv, 0), (block, x)):
        whole = to_numpy([layer(x)])[0] - skip
        seen = to_numpy([layer(x, training=True)])[0] - skip
        dropped = np.all(seen == 0, axis=(1, 2, 3))
        assert 10 < dropped.sum() < 54
        if layer is block:  # it has no statistics of the batch
            np.testing.assert_allclose(
                seen[~dropped], 2 * whole[~dropped], rtol=1e-3, atol=1e-5
            )


def test_settings_survive_a_round_trip():
    block = ConvNeXtBlock(5, 2, 0.1, 0.2, "channels_first")
    conv = DepthwiseConv3D(5, 2, False, "channels_first", "ones")
    mb_conv = MBConv(4, 3, 2, padding="symmetric")
    coupling = ReversibleMBConv(7, 5, first=2)
    for layer in (block, conv, mb_conv, coupling):
        config = layer.get_config()
        again = type(layer).from_config(config)
        assert again.get_config() == config
    assert ops.shape(conv(batch(1, 2, 4, 4, 4))) == (1, 2, 2, 2, 2)
