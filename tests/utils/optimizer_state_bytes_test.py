import re

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import LDAdam
from keras_efficient.optimizers import MicroAdam
from keras_efficient.utils import optimizer_state_bytes

UNITS = {"B": 1, "KB": 2**10, "MB": 2**20}


def compiled(optimizer):
    """A model of 128 * 64 + 64 + 64 + 1 parameters, two of them small."""
    model = keras.Sequential(
        [keras.Input((128,)), layers.Dense(64), layers.Dense(1)]
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def iterations_and_learning_rate(optimizer):
    itemsize = int(re.search(r"\d+", optimizer.iterations.dtype).group()) // 8
    return itemsize + 4


def test_adam_takes_eight_bytes_a_parameter():
    optimizer = keras.optimizers.Adam()
    model = compiled(optimizer)
    assert model.count_params() == 128 * 64 + 64 + 64 + 1
    rest = iterations_and_learning_rate(optimizer)
    expected = 8 * model.count_params() + rest
    assert optimizer_state_bytes(optimizer) == expected


def test_sgd_takes_none():
    optimizer = keras.optimizers.SGD()
    compiled(optimizer)
    rest = iterations_and_learning_rate(optimizer)
    assert optimizer_state_bytes(optimizer) == rest


def test_micro_adam_takes_less_than_a_byte_for_large_tensors():
    """Its state is int8, bfloat16, float32, and integers for the counters."""
    optimizer = MicroAdam()
    model = compiled(optimizer)
    large, small = 128 * 64, 64 + 64 + 1
    measured = optimizer_state_bytes(optimizer)
    assert 0.8 * large < measured - 8 * small < large
    dtypes = {v.dtype for v in optimizer.variables}
    assert {"bfloat16", "float32"} < dtypes
    assert any("int8" in dtype for dtype in dtypes)
    assert measured < 0.2 * optimizer_state_bytes_of_adam(model)


def optimizer_state_bytes_of_adam(model):
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return optimizer_state_bytes(optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        *(keras.optimizers.SGD, keras.optimizers.Adam),
        *(MicroAdam, Adam8bit, LDAdam),
    ],
)
def test_agrees_with_the_summary(optimizer):
    optimizer = optimizer()
    lines = []
    compiled(optimizer).summary(print_fn=lines.append)
    number, unit = re.search(
        r"Optimizer params:.*\(([\d.]+) (B|KB|MB)\)", "\n".join(lines)
    ).groups()
    # The summary rounds to two decimals.
    printed = optimizer_state_bytes(optimizer) / UNITS[unit]
    assert printed == pytest.approx(float(number), abs=0.006)


@pytest.mark.parametrize(
    ("dtype", "itemsize"),
    [
        ("float32", 4),
        ("float16", 2),
        ("bfloat16", 2),
        ("int32", 4),
        ("int16", 2),
        ("int8", 1),
        ("uint8", 1),
        ("bool", 1),
    ],
)
def test_every_dtype_has_its_size(dtype, itemsize):
    optimizer = keras.optimizers.SGD()
    optimizer.build([keras.Variable(np.zeros(3, "float32"))])
    before = optimizer_state_bytes(optimizer)
    optimizer.add_variable((6, 5), initializer="zeros", dtype=dtype)
    assert optimizer_state_bytes(optimizer) - before == 30 * itemsize
