"""Many tensors at a time make the same steps as one after another."""

import keras
import numpy as np
import pytest

import keras_efficient.optimizers.batched_step as module
from keras_efficient.kernels import policy
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import AdamW8bit
from keras_efficient.optimizers import Lion8bit
from keras_efficient.optimizers import MicroAdam
from keras_efficient.optimizers import SGD8bit
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import to_numpy

SHAPES = [(64, 65), (), (3,), (40, 64), (0,), (9, 33), (5, 60), (1,), (7, 64)]

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="only PyTorch steps in batches"
)


@pytest.mark.parametrize("batch_size", [1, 3000, 2**22])
@pytest.mark.parametrize(
    "cls", [Adam8bit, AdamW8bit, Lion8bit, MicroAdam, SGD8bit]
)
def test_same_as_one_after_another(cls, batch_size, monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "off")
    monkeypatch.setattr(module, "BATCH_SIZE", batch_size)
    runs = []
    for is_batched in (True, False):
        variables = [keras.Variable(normal(*s, seed=1)) for s in SHAPES]
        optimizer = cls(0.1, min_size=100)
        optimizer.build(variables)
        for step in range(2):
            gradients = [
                keras.ops.convert_to_tensor(normal(*shape, seed=[step, i]))
                for i, shape in enumerate(SHAPES)
            ]
            if is_batched:
                module.batched_step(optimizer, gradients, variables, 0.1)
            else:
                for pair in zip(gradients, variables):
                    optimizer.update_step(*pair, 0.1)
        runs.append([variables, state_of(optimizer)])
    for x, y in zip(*(to_numpy(run[0]) for run in runs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    check_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("cls", [Adam8bit, MicroAdam])
def test_kernels_step_as_one_after_another(cls, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(policy, "_chosen", "auto")
    dtypes = ("float32", "bfloat16", "float16")  # no kernel serves the last
    runs, kinds = [], [dtypes[i % 3] for i in range(len(SHAPES))]
    for is_batched in (True, False):
        variables = [
            keras.Variable(normal(*shape, seed=1), dtype=dtype)
            for shape, dtype in zip(SHAPES, kinds)
        ]
        optimizer = cls(0.1, min_size=4)
        optimizer.build(variables)
        for step in range(3):
            gradients = [
                keras.ops.convert_to_tensor(
                    normal(*shape[::-1], seed=[step, i]), dtype
                ).permute(tuple(range(len(shape)))[::-1])
                for i, (shape, dtype) in enumerate(zip(SHAPES, kinds))
            ]
            if is_batched:
                optimizer.apply(gradients, variables)
            else:
                for pair in zip(gradients, variables):
                    optimizer.update_step(*pair, 0.1)
                optimizer.iterations.assign_add(1)
        runs.append([variables, state_of(optimizer)])
    for columns in zip(*runs, strict=True):
        check_equal(*columns)


def test_batches_have_a_limit(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 10)
    rows = [(i, np.zeros(size)) for i, size in enumerate([4, 6, 1, 30, 2, 8])]
    sizes = [[x.size for _, x in batch] for batch in module.batches(rows)]
    assert sizes == [[4, 6], [1], [30], [2, 8]]
