import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops.newton_schulz import newton_schulz
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import Muon8bit
from tests.optimizers.table import check_close
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

SHAPES = {
    "kernel": (48, 96),
    "tall": (96, 48),
    "embeddings": (100, 48),
    "filters": (3, 3, 16, 40),
    "bias": (64,),
}


def make_variables():
    return [
        keras.Variable(normal(*shape, seed=i), name=name)
        for i, (name, shape) in enumerate(SHAPES.items())
    ]


def train(optimizer, steps=3):
    variables = make_variables()
    run = stepper(optimizer, variables)
    for step in range(steps):
        run([normal(*s, seed=[5, step]) for s in SHAPES.values()])
    return to_numpy(variables)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adam_lr_ratio": 0.3, "nesterov": False, "rms_rate": None},
        {"weight_decay": 0.3, "adam_weight_decay": None, "ns_steps": 3},
        {"exclude_layers": ["tal+"], "exclude_embeddings": False},
    ],
    ids=str,
)
def test_is_keras_muon_but_for_the_codes(options):
    # Keras adds it at another place, which small gradients feel.
    options = {"epsilon": 1e-12, **options}
    expected = train(keras.optimizers.Muon(0.01, **options))
    check_close(train(Muon8bit(0.01, min_size=10**6, **options)), expected)
    # A momentum of 8 bits turns the direction a little.
    for x, y, start in zip(
        train(Muon8bit(0.01, **options)), expected, make_variables()
    ):
        start = to_numpy([start])[0]
        moved, other = (x - start).ravel(), (y - start).ravel()
        assert np.corrcoef(moved, other)[0, 1] > 0.98


def test_what_is_no_matrix_has_adam_of_8_bits():
    options = {"weight_decay": None, "adam_weight_decay": None}
    actual = train(Muon8bit(0.01, **options))
    # Noise comes from the place of a variable among all of them.
    expected = train(Adam8bit(0.01))
    check_close(actual[2:], expected[2:], 1e-6)
    assert np.abs(actual[0] - expected[0]).max() > 1e-3


def test_state():
    optimizer = Muon8bit(exclude_layers=["tall"])
    optimizer.build(make_variables())
    assert optimizer._is_matrix == [True, False, False, False, False]
    assert [len(slots) for slots in optimizer._states] == [2, 4, 4, 4, 2]
    kinds = [[v.dtype for v in slots] for slots in optimizer._states]
    assert kinds[0] == ["int8", "float16"]
    assert kinds[1] == ["int8", "float16", "uint8", "float16"]
    assert kinds[4] == ["float32", "float32"]


def test_singular_values_are_near_1():
    for shape in ((20, 60), (60, 20)):
        x = newton_schulz(ops.convert_to_tensor(normal(*shape)))
        values = np.linalg.svd(to_numpy([x])[0], compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3


def test_without_gradients_nothing_moves():
    variables = make_variables()
    optimizer = Muon8bit(weight_decay=None, adam_weight_decay=None)
    before = to_numpy(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    check_equal(variables, before)
