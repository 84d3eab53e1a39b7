import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import ld_adam_step
from keras_efficient.optimizers import LDAdam
from keras_efficient.utils import optimizer_state_bytes
from tests.compilers import compiled
from tests.optimizers.table import check_close
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy


def bytes_of(shape, name="kernel", **options):
    """Bytes of state of one tensor."""
    optimizer = LDAdam(**options)
    optimizer.build([keras.Variable(ops.zeros(shape), name=name)])
    none = LDAdam()
    none.build([])
    return optimizer_state_bytes(optimizer) - optimizer_state_bytes(none)


@pytest.mark.parametrize(
    "shape, sides",
    [
        ((64, 128), (64, 128)),
        ((128, 64), (64, 128)),
        ((65, 129), (65, 129)),
        ((3, 3, 64, 32), (32, 576)),
        ((1000, 300), (300, 1000)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [4, 16])
def test_bytes(shape, sides, rank):
    short, long = sides
    size = math.prod(shape)
    moments = 4 * (short * rank + 2 * rank * long)
    buckets = math.ceil(size / 64)
    options = {"rank": rank}
    assert bytes_of(shape, **options) == moments + buckets * (32 + 4)
    options["error_feedback"] = "full"
    assert bytes_of(shape, **options) == moments + 4 * size
    options["error_feedback"] = "off"
    assert bytes_of(shape, **options) == moments


def test_bytes_a_parameter_in_the_docstring():
    size = 1024 * 1024
    moments = bytes_of((1024, 1024), error_feedback="off") / size
    error = bytes_of((1024, 1024)) / size - moments
    assert f"{moments:.2f}" == "0.19" and f"{error:.2f}" == "0.56"


def test_what_keeps_adam():
    adam, less = 64 * 64 * 8, 64 * 64 * 7
    assert bytes_of((64, 64)) < less
    assert bytes_of((64, 64), min_size=4097) == adam
    assert bytes_of((64, 64), rank=64) > 0
    assert len(slots_of((64, 64), rank=64)) == 6
    assert len(slots_of((64, 64), rank=65)) == 2
    assert len(slots_of((3, 3, 64, 15))) == 2
    assert len(slots_of((3, 3, 64, 16))) == 6
    assert bytes_of((4096,)) == adam
    assert bytes_of((64, 64), name="embeddings") == adam
    assert bytes_of((64, 64), "embeddings", exclude_embeddings=False) < less
    assert bytes_of((64, 64), name="output", exclude_layers=["input"]) < less
    assert bytes_of((64, 64), name="output", exclude_layers=["outp"]) == adam


def slots_of(shape, **options):
    optimizer = LDAdam(**options)
    optimizer.build([keras.Variable(ops.zeros(shape))])
    return state_of(optimizer)


def test_projector_starts_and_stays_orthonormal():
    variables, optimizer = make_variables(), LDAdam(rank=8)
    optimizer.build(variables)
    step_fn = stepper(optimizer, variables)
    for step in range(3):
        for index, side in ((0, 48), (6, 40)):
            p = to_numpy(state_of(optimizer)[index : index + 1])[0]
            assert p.shape == (side, 8)
            np.testing.assert_allclose(p.T @ p, np.eye(8), atol=1e-5)
        step_fn(make_gradients(step))


@pytest.mark.parametrize("error_feedback", ["quantized", "full", "off"])
def test_options_reach_the_step(error_feedback):
    options = {"beta_1": 0.8, "beta_2": 0.9, "rho": 0.5, "epsilon": 0.1}
    variables, expected = make_variables(), to_numpy(make_variables())
    optimizer = LDAdam(
        0.1,
        rank=8,
        error_feedback=error_feedback,
        bucket_size=32,
        rounding="nearest",
        **options,
    )
    optimizer.build(variables)
    number = {"quantized": 6, "full": 4, "off": 3}[error_feedback]
    slots = state_of(optimizer)[:number]
    state = [ops.copy(slot.value) for slot in slots]
    step_fn = stepper(optimizer, variables)
    expected_fn = compiled(
        functools.partial(ld_adam_step, rounding="nearest", **options)
    )
    for step in range(1, 4):
        gradients = make_gradients(step)
        actual = step_fn(gradients)[0]
        gradient = ops.convert_to_tensor(gradients[0])
        update, state = expected_fn(gradient, tuple(state), step)
        expected[0] = expected[0] - 0.1 * to_numpy([update])[0]
        # A gradient that differs by one rounding may move one 4-bit code.
        wrong = np.abs(actual - expected[0]) > 1e-3
        assert wrong.mean() < 1e-2
    assert len(slots) < 4 or slots[3].shape in ((144, 16), (48, 96))


def test_small_tensors_follow_adam():
    shapes = [(123,), (8, 1000), (60, 60)]
    sets = [[keras.Variable(ops.zeros(s)) for s in shapes] for _ in range(2)]
    options = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-12}
    steppers = [
        stepper(LDAdam(0.1, **options), sets[0]),
        stepper(keras.optimizers.Adam(0.1, **options), sets[1]),
    ]
    for step in range(10):
        gradients = [normal(*s, seed=step) for s in shapes]
        actual, expected = (step_fn(gradients) for step_fn in steppers)
        check_close(actual, expected)


def test_error_feedback_finds_what_the_subspace_misses():
    """Of more directions than dimensions, all have their turn."""
    u = np.linalg.qr(normal(64, 8))[0]
    v = np.linalg.qr(normal(64, 8, seed=1))[0]
    gradient = u * np.geomspace(3, 1, 8, dtype="float32") @ v.T
    ways = {}
    for error_feedback in ("quantized", "full", "off"):
        variable = keras.Variable(ops.zeros((64, 64)))
        optimizer = LDAdam(1.0, rank=2, error_feedback=error_feedback)
        step_fn = stepper(optimizer, [variable])
        for _ in range(150):
            x = step_fn([gradient])[0]
        ways[error_feedback] = np.diag(u.T @ -x @ v)
    # how far the steps went in the three smallest directions
    assert ways["full"][5:].min() > 10 * np.abs(ways["off"][5:]).max()
    assert ways["quantized"][5:].min() > 10 * np.abs(ways["off"][5:]).max()


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        LDAdam(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x = x / 16
    model.fit(x[:1300], y[:1300], epochs=5, verbose=0)
    assert model.evaluate(x[1300:], y[1300:], verbose=0)[1] > 0.85


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rho": 1.0}, r"`rho` must be in \[0, 1\).*rho=1.0"),
        ({"rank": 0}, "`rank` must be at least 1.*rank=0"),
        ({"bucket_size": 63}, "`bucket_size` must be even.*bucket_size=63"),
        ({"bucket_size": 0}, "`bucket_size` must be even.*bucket_size=0"),
        ({"rounding": "up"}, "`rounding` must be one of.*rounding=up"),
        (
            {"error_feedback": None},
            "`error_feedback` must be one of.*error_feedback=None",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LDAdam(**options)
