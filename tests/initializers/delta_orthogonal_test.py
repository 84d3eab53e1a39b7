import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.initializers import DeltaOrthogonal


@pytest.mark.parametrize(
    "shape, strides",
    [
        ((3, 3, 4, 4), 1),
        ((3, 3, 2, 5), 1),
        ((3, 3, 5, 2), 1),
        ((4, 3, 2, 8), 2),
        ((3, 2, 2, 9), (3, 1)),
        ((5, 2, 6), 2),
        ((3, 3, 3, 1, 8), 2),
    ],
)
def test_the_convolution_is_orthonormal(shape, strides):
    kernel = DeltaOrthogonal(strides, seed=1)(shape)
    *sizes, channels, filters = shape
    rank = len(sizes)
    grid = (6, 6, 4)[:rank]
    n = int(np.prod(grid)) * channels
    x = np.eye(n, dtype="float32").reshape(n, *grid, channels)
    y = ops.conv(x, kernel, strides, "same", data_format="channels_last")
    y = ops.convert_to_numpy(y).reshape(n, -1)
    gram = y @ y.T if y.shape[1] >= n else y.T @ y
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_gain_seed_and_config():
    shape = (3, 3, 4, 4)
    one = DeltaOrthogonal(2, 3.0, 7)
    again = DeltaOrthogonal.from_config(one.get_config())
    np.testing.assert_array_equal(*map(np.asarray, (one(shape), again(shape))))
    ours = keras.initializers.get(keras.initializers.serialize(one))
    assert ours.get_config() == one.get_config()
    plain = ops.convert_to_numpy(DeltaOrthogonal(2, seed=7)(shape))
    np.testing.assert_allclose(ops.convert_to_numpy(one(shape)), 3 * plain)
    assert np.abs(DeltaOrthogonal(2, seed=8)(shape) - plain).max() > 0.1


@pytest.mark.parametrize(
    "shape, strides, expected",
    [
        ((4, 4), 1, "starts kernels of convolutions"),
        ((3, 3, 4, 4), (1,), "one stride for each axis"),
        ((3, 1, 4, 4), 2, "must not be smaller than the strides"),
    ],
)
def test_bad_input_is_refused(shape, strides, expected):
    with pytest.raises(ValueError, match=expected):
        DeltaOrthogonal(strides)(shape)
