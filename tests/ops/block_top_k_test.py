import keras
import numpy as np
import pytest

from keras_efficient.ops import block_top_k


def top_k(x, k):
    indices, values = block_top_k(keras.ops.convert_to_tensor(x), k)
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"
    assert tuple(indices.shape) == tuple(values.shape) == (len(x), k)
    return (
        keras.ops.convert_to_numpy(indices),
        keras.ops.convert_to_numpy(values),
    )


@pytest.mark.parametrize(
    "blocks, block_size, k",
    [(1, 1, 1), (3, 7, 1), (3, 7, 6), (3, 7, 7), (5, 256, 3), (2, 4096, 41)],
)
def test_largest_magnitudes_with_their_signs(blocks, block_size, k):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(blocks, block_size)).astype("float32")
    indices, values = top_k(x, k)
    for row, index, value in zip(x, indices, values, strict=True):
        expected = np.argsort(-np.abs(row))[:k]
        assert set(index) == set(expected)
        np.testing.assert_array_equal(value, row[index])


def test_ties_take_different_entries():
    for x in (np.zeros((2, 8), "float32"), np.tile([1.0, -1.0], (2, 4))):
        indices, values = top_k(x.astype("float32"), 3)
        assert all(len(set(row)) == 3 for row in indices)
        np.testing.assert_array_equal(
            values, np.take_along_axis(x, indices, axis=-1)
        )


def test_last_entry_of_the_largest_block():
    x = np.zeros((1, 2**15), "float32")
    x[0, -1] = -1.0
    indices, values = top_k(x, 1)
    assert indices.tolist() == [[2**15 - 1]]
    assert values.tolist() == [[-1.0]]
