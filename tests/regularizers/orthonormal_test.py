import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.initializers import DeltaOrthogonal
from keras_efficient.regularizers import Orthonormal


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def dense_matrix(kernel, strides, size):
    """The matrix of a convolution on a torus, in NumPy, E[output, input]."""
    *kernel_size, inputs, outputs = kernel.shape
    rank = len(kernel_size)
    grid = [n // s for n, s in zip(size, strides)]
    e = np.zeros((*grid, outputs, *size, inputs))
    for o in np.ndindex(*grid):
        for t in np.ndindex(*kernel_size):
            at = [(i * s + j) % n for i, s, j, n in zip(o, strides, t, size)]
            e[(*o, slice(None), *at, slice(None))] += kernel[t].T
    return (
        e.reshape(int(np.prod(grid)) * outputs, int(np.prod(size)) * inputs),
        int(np.prod(grid)),
        rank,
    )


CASES = [
    ((4, 6), 1),
    ((6, 4), 1),
    ((3, 2, 4), 1),
    ((3, 3, 2, 3), 1),
    ((3, 4, 2, 3), (2, 3)),
    ((2, 2, 1, 4), 2),
    ((4, 3, 3, 2), (3, 1)),
    ((2, 3, 1, 1, 2), (1, 2, 1)),
]


@pytest.mark.parametrize("shape, strides", CASES)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_is_the_error_of_the_map(shape, strides, side):
    """Against the whole matrix, on a torus too large to meet itself."""
    kernel = random(*shape)
    rank = len(shape) - 2
    steps = (strides,) * rank if isinstance(strides, int) else strides
    size = [s * (2 * -(-k // s) + 1) for k, s in zip(shape, steps)][:rank]
    e, cells, _ = dense_matrix(kernel, steps, size)
    gram = e.T @ e if side == "inputs" else e @ e.T
    # All cells of one stride have the same error.
    n = len(gram) / cells
    expected = np.sum((gram - np.eye(len(gram))) ** 2) / cells / n
    found = Orthonormal(0.5, side, strides)(ops.convert_to_tensor(kernel))
    np.testing.assert_allclose(float(found), 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("shape, strides", CASES)
def test_auto_chooses_a_side_that_can_be_zero(shape, strides):
    if len(shape) == 2:
        kernel = keras.initializers.Orthogonal(seed=1)(shape)
    else:
        kernel = DeltaOrthogonal(strides, seed=1)(shape)
    assert float(Orthonormal(strides=strides)(kernel)) < 1e-10
    assert float(Orthonormal(strides=strides)(2 * kernel)) > 0.01


def test_it_makes_a_kernel_orthonormal():
    regularizer = Orthonormal(1.0, strides=2)
    conv = keras.layers.Conv2D(8, 3, 2, kernel_regularizer=regularizer)
    x = np.zeros((150, 7, 7, 1), "float32")
    model = keras.Sequential([keras.Input(x.shape[1:]), conv])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    before = float(model.losses[0])
    y = np.zeros(model.compute_output_shape(x.shape), "float32")
    model.fit(x, y, batch_size=1, verbose=0)
    assert before > 0.3 and float(model.losses[0]) < 1e-3


def test_config():
    config = Orthonormal(0.3, "outputs", (2, 1)).get_config()
    again = keras.regularizers.get(
        keras.regularizers.serialize(Orthonormal.from_config(config))
    )
    assert again.get_config() == {**config, "strides": again.strides}
    assert tuple(again.strides) == (2, 1)


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf")])
def test_a_wrong_factor_is_refused(factor):
    with pytest.raises(ValueError, match="`factor` must be a finite float"):
        Orthonormal(factor)


def test_a_wrong_side_or_kernel_is_refused():
    with pytest.raises(ValueError, match="`side` must be .*'rows'"):
        Orthonormal(side="rows")
    for shape, strides in (((3,), 1), ((3, 3, 2, 2), (1,)), ((1, 2, 2), 2)):
        with pytest.raises(ValueError, match="takes kernels of dense layers"):
            Orthonormal(strides=strides)(ops.ones(shape))
