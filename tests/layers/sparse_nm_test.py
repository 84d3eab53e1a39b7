"""What N:M sparsity promises besides its equations."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import Recompute
from keras_efficient.layers import SparseNM
from keras_efficient.layers.core.sparse_nm import frames
from keras_efficient.layers.core.sparse_nm import group_mask
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.marks import once
from tests.twins import batch


def non_zeros(kernel, m, axis=-2):
    """The largest number of a group, the last of which may be smaller."""
    kernel = np.moveaxis(ops.convert_to_numpy(kernel), axis, -1)
    counts = [
        np.count_nonzero(kernel[..., i : i + m], axis=-1).max()
        for i in range(0, kernel.shape[-1], m)
    ]
    return max(counts)


def test_groups_of_odd_shapes_and_of_equals_keep_n():
    for shape, axis in (((9, 5), -2), ((3, 3, 7, 4), -2), ((4, 10), -1)):
        for x in (batch(*shape), np.ones(shape, "float32")):
            for n, m in ((1, 4), (2, 4), (3, 8)):
                mask = group_mask(ops.convert_to_tensor(x), n, m, axis)
                mask = ops.convert_to_numpy(mask).astype("float32")
                assert non_zeros(mask, m, axis) == n
                rest = shape[axis] % m
                kept = shape[axis] // m * n + min(n, rest)
                assert (mask.sum(axis) == kept).all()


@once
def test_frames():
    assert frames(2, 8) == [7, 4, 2]
    assert frames(1, 16) == [15, 8, 4, 2, 1]
    assert frames(3, 8) == [7, 4, 3]
    assert frames(1, 2) == [1] and frames(3, 4) == [3]


@once
def test_decay_by_hand():
    layer = SparseNM(layers.Dense(1), 1, 4, rate=0.125, dense_steps=2)
    layer.build((None, 4))
    layer.layer.kernel.assign([[4.0], [1.0], [2.0], [3.0]])
    for steps, d in ((0, 1.0), (2, 1.0), (3, 0.875), (6, 0.5), (99, 0.0)):
        layer.steps.assign(steps)
        kernel = ops.convert_to_numpy(layer.transformed())[:, 0]
        np.testing.assert_allclose(kernel, [4.0, d, 2 * d, 3 * d])
    layer.decay = "exponential"
    for steps, d in ((0, 1.0), (10, np.exp(-1)), (42, 0.0)):
        layer.steps.assign(steps)
        kernel = ops.convert_to_numpy(layer.transformed())[:, 0]
        np.testing.assert_allclose(kernel, [4.0, d, 2 * d, 3 * d], rtol=1e-6)


@pytest.mark.parametrize("method", ["mask_decay", "structure_decay", "sr_ste"])
def test_fit_through_all_frames_without_a_retrace(method, monkeypatch):
    """Inside `Recompute`, too, steps are counted once."""
    calls, transform = [], SparseNM.transform_kernel

    def counted(self, *args):
        calls.append(args)
        return transform(self, *args)

    monkeypatch.setattr(SparseNM, "transform_kernel", counted)
    keras.utils.set_random_seed(0)
    first, second = (
        SparseNM(layers.Dense(8), 1, 4, method, rate=0.2, dense_steps=3)
        for _ in range(2)
    )
    model = keras.Sequential(
        [keras.Input((8,)), first, Recompute(second), layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", **fit_mode(LAST))
    x = batch(64, 8)
    y = x[:, :1]
    losses = [model.fit(x[:8], y[:8], verbose=0).history["loss"][0]]
    traced = len(calls)
    losses += model.fit(x, y, 8, epochs=2, verbose=0).history["loss"]
    if keras.config.backend() != "torch":
        assert len(calls) == traced
    assert losses[-1] < losses[0]
    for layer in (first, second):
        assert int(ops.convert_to_numpy(layer.steps)) == 17
        assert non_zeros(layer.layer.kernel, 4) == 4
        assert non_zeros(layer.transformed(), 4) == 1
    found = SparseNM.sparsify(model)
    assert list(found.values()) == [1, 1]
    assert non_zeros(first.layer.kernel, 4) == 1


@once
def test_what_cannot_be_right_is_refused():
    for options, match in (
        ({"n": 4}, "`n` must be"),
        ({"n": 0}, "`n` must be"),
        ({"method": "decay"}, "`method` must be"),
        ({"decay": "cosine"}, "`decay` must be"),
        ({"gradient": "none"}, "`gradient` must be"),
        ({"rate": 0.0}, "`rate` must be"),
        ({"dense_steps": -1}, "`dense_steps` must be"),
    ):
        with pytest.raises(ValueError, match=match):
            SparseNM(layers.Dense(4), **options)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="must have a `SparseNM` layer"):
        SparseNM.sparsify(model)
