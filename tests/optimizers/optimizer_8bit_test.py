"""What holds for all optimizers with moments of one byte."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops import lion_8bit_step
from keras_efficient.ops import quantize_8bit
from keras_efficient.ops import sgd_8bit_step
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import AdamW8bit
from keras_efficient.optimizers import Lion8bit
from keras_efficient.optimizers import SGD8bit
from tests.optimizers.table import ITEMSIZE
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

CLASSES = [Adam8bit, AdamW8bit, Lion8bit, SGD8bit]
TWINS = {
    Adam8bit: keras.optimizers.Adam,
    AdamW8bit: keras.optimizers.AdamW,
    Lion8bit: keras.optimizers.Lion,
    SGD8bit: keras.optimizers.SGD,
}
MOMENTS = {Adam8bit: 2, AdamW8bit: 2, Lion8bit: 1, SGD8bit: 1}
each_class = pytest.mark.parametrize("cls", CLASSES)


def make_variables(dtype="float32"):
    """Return a matrix with a compressed state and a vector without."""
    return [
        keras.Variable(normal(64, 96, seed=1), dtype=dtype, name="kernel"),
        keras.Variable(normal(64, seed=2), dtype=dtype, name="bias"),
    ]


def make_gradients(step, scale=1.0):
    return [
        scale * normal(64, 96, seed=[3, step]),
        scale * normal(64, seed=[4, step]),
    ]


@each_class
@pytest.mark.parametrize(
    "shape",
    [
        *((4096,), (64, 64), (64, 65), (100, 77), (784, 10), (1000, 300)),
        *((3, 3, 64, 64), (5, 1, 7, 129), (3, 3, 5, 112), (30, 3, 53)),
    ],
    ids=str,
)
def test_bytes_of_state(cls, shape):
    optimizer = cls()
    optimizer.build([keras.Variable(ops.zeros(shape))])
    total = sum(
        math.prod(v.shape) * ITEMSIZE[v.dtype] for v in state_of(optimizer)
    )
    limit = {1: 1.075, 2: 2.15}[MOMENTS[cls]]
    assert MOMENTS[cls] < total / math.prod(shape) <= limit


def test_state_shapes_and_dtypes():
    layouts = []
    for dtype in ("float32", "bfloat16"):
        optimizer = Adam8bit()
        optimizer.build(make_variables(dtype))
        state = state_of(optimizer)
        layouts.append([(tuple(v.shape), v.dtype) for v in state])
    corrections = [((64, 96), "int8"), ((64,), "int8")]
    assert layouts[1] == layouts[0] + corrections  # of weights of 16 bits
    assert layouts[0] == [
        *(((64, 96), "int8"), ((64, 3), "float16")),
        *(((64, 96), "uint8"), ((64, 3), "float16")),
        *(((64,), "float32"), ((64,), "float32")),
    ]


@each_class
def test_min_size_decides_which_tensors_are_small(cls):
    for min_size, slots in ((64 * 96, 2), (64 * 96 + 1, 1)):
        optimizer = cls(min_size=min_size)
        optimizer.build(make_variables()[:1])
        assert len(state_of(optimizer)) == slots * MOMENTS[cls]


@each_class
def test_small_tensors_follow_keras(cls):
    options = {"weight_decay": 0.1}
    if cls is SGD8bit:
        options.update(momentum=0.8, nesterov=True)
    elif MOMENTS[cls] == 2:
        options.update(epsilon=1e-12)  # which Keras adds in another place
    optimizers = [cls(0.1, min_size=10**6, **options)]
    optimizers.append(TWINS[cls](0.1, **options))
    ours, twin = (stepper(o, make_variables()) for o in optimizers)
    for step in range(15):
        x, y = ours(make_gradients(step)), twin(make_gradients(step))
        for a, b in zip(x, y, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@each_class
def test_large_tensors_stay_near_keras(cls):
    options = {"momentum": 0.9} if cls is SGD8bit else {}
    optimizers = [cls(0.1, **options), TWINS[cls](0.1, **options)]
    ours, twin = (stepper(o, make_variables()) for o in optimizers)
    start = to_numpy(make_variables())[0]
    for step in range(20):
        x, y = ours(make_gradients(step))[0], twin(make_gradients(step))[0]
    assert np.linalg.norm(x - y) < 0.1 * np.linalg.norm(y - start)
    assert (x != y).any()


def zero_state(shape):
    codes, scale = quantize_8bit(ops.zeros(shape))
    return [codes, scale, ops.cast(codes, "uint8"), scale]


ADAM_OPTIONS = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.1}


@pytest.mark.parametrize(
    "cls, step_fn, options",
    [
        (Adam8bit, adam_8bit_step, ADAM_OPTIONS),
        (AdamW8bit, adam_8bit_step, ADAM_OPTIONS),
        (Lion8bit, lion_8bit_step, {"beta_1": 0.7, "beta_2": 0.8}),
        (SGD8bit, sgd_8bit_step, {"momentum": 0.7, "nesterov": False}),
        (SGD8bit, sgd_8bit_step, {"momentum": 0.8, "nesterov": True}),
    ],
)
def test_options_reach_the_step(cls, step_fn, options):
    variables = [keras.Variable(ops.zeros((64, 96))) for _ in range(2)]
    decay = {"weight_decay": 0.0} if cls is AdamW8bit else {}
    optimizer = cls(0.1, **options, **decay)
    step_8bit = stepper(optimizer, variables)
    state = zero_state((64, 96))[: 2 * MOMENTS[cls]]
    expected = np.zeros((64, 96))
    for step in range(1, 4):
        gradient = make_gradients(step)[0]
        actual = step_8bit([gradient, gradient])[1]
        gradient = ops.convert_to_tensor(gradient)
        if MOMENTS[cls] == 2:
            update, state = step_fn(
                gradient, Adam8bitState(*state), step, seed=1, **options
            )
        else:
            update, *state = step_fn(gradient, *state, **options)
        expected = expected - 0.1 * to_numpy([update])[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
        check_equal(state_of(optimizer)[len(state) :], state)


def test_adamw_decays_by_default():
    kernels = []
    for optimizer in (AdamW8bit(0.1), Adam8bit(0.1, weight_decay=0.004)):
        variables = make_variables()
        stepper(optimizer, variables)(make_gradients(0))
        kernels.append(variables)
    check_equal(*kernels)
    variables = make_variables()
    stepper(Adam8bit(0.1), variables)(make_gradients(0))
    assert (to_numpy(variables)[0] != to_numpy(kernels[0])[0]).any()


@each_class
def test_defaults_are_those_of_keras(cls):
    expected = TWINS[cls]().get_config()
    if cls is SGD8bit:
        expected["momentum"] = 0.9
    actual = cls().get_config()
    for name in set(expected) & set(actual) - {"name"}:
        assert actual[name] == pytest.approx(expected[name]), name
    assert actual["min_size"] == 4096


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (AdamW8bit, {"weight_decay": None}, "`weight_decay` must be a float"),
        (SGD8bit, {"momentum": 0.0}, r"`momentum` must be in \(0, 1\).*=0.0"),
        (SGD8bit, {"momentum": 1.0}, r"`momentum` must be in \(0, 1\).*=1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
