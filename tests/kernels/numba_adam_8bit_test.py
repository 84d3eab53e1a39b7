"""The kernel of the 8-bit Adam step against the portable form."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import config
from keras_efficient.kernels import policy
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.ops.weight_rounding import round_weight
from keras_efficient.optimizers import Adam8bit

numba = pytest.importorskip("numba")

BACKEND = keras.config.backend()
if BACKEND not in ("jax", "tensorflow", "torch"):
    pytest.skip("no kernels", allow_module_level=True)

SHAPES = [
    *((1,), (123,), (31,), (32,), (33,), (4097,), (3, 3, 5, 7)),
    *((0,), (0, 5), (64, 48), (70, 60), (2500, 60), (300, 512)),
]
OPTIONS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
RATE, SEED = 0.01, 3


@pytest.fixture(autouse=True)
def kernels_by_default(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "auto")


def modes():
    if BACKEND == "jax":
        import jax

        return {"jit": jax.jit}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {
            "eager": lambda fn: fn,
            "graph": tf.function,
            "xla": tf.function(jit_compile=True),
        }
    return {"eager": lambda fn: fn}


def portable(parameter, gradient, state, step):
    update, state = adam_8bit_step(
        gradient, Adam8bitState(*state), step, seed=SEED, **OPTIONS
    )
    moved = ops.cast(parameter, "float32") - RATE * update
    if is_16_bit(parameter):
        moved = round_weight(moved, "bfloat16")
    return moved, *state


def fused(parameter, gradient, state, step):
    arguments = Adam8bitArguments(learning_rate=RATE, step=step, **OPTIONS)
    (result,) = do_steps([Row(parameter, state, gradient, SEED)], arguments)
    assert result is not None, "no kernel"
    return result


def zero_state(shape):
    state = []
    for dtype in ("int8", "uint8"):
        state.append(ops.zeros(shape, dtype))
        state.append(ops.zeros(scale_shape(shape), "float16"))
    return state


def make_gradient(shape, step):
    """Numbers of every size, groups of zeros, and some that are not finite."""
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 6, size=shape)
    x.flat[::97], x.flat[5::89] = np.nan, -np.inf
    x.flat[2::83] = 0.0
    x.flat[64:128] = 0.0
    return x.astype("float32")


def to_numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def check_codes(actual, expected, exact):
    """Compare codes or scales.

    The roots of PyTorch and of the graphs of TensorFlow are not those of the
    standard in all last digits: a code next to a border may be another one.
    """
    different = actual != expected
    assert different.sum() <= (0 if exact else max(1, 1e-4 * actual.size))


@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_as_portable(shape, dtype, mode):
    exact = (BACKEND, mode) not in (("torch", "eager"), ("tensorflow", "graph"))
    fns = [modes()[mode](fn) for fn in (portable, fused)]
    rng = np.random.default_rng(0)
    tensors = [ops.convert_to_tensor(rng.normal(size=shape), dtype)]
    tensors += zero_state(shape)
    for step in range(1, 5):
        gradient = ops.convert_to_tensor(make_gradient(shape, step), dtype)
        t = ops.convert_to_tensor(step, "int32")
        expected = fns[0](tensors[0], gradient, tensors[1:], t)
        # PyTorch overwrites what the kernel gets.
        parameter, *state = map(ops.copy, tensors)
        actual = fns[1](parameter, gradient, state, t)
        for x, y in zip(actual, expected, strict=True):
            assert x.dtype == y.dtype and tuple(x.shape) == tuple(y.shape)
        tensors = expected
        x, *codes = map(to_numpy, actual)
        y, *others = map(to_numpy, expected)
        tolerance = 1e-6 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-6)
        assert dtype == "float32" or (x != y).sum() <= max(1, 1e-3 * x.size)
        for a, b in zip(codes, others, strict=True):
            check_codes(a, b, exact)


@pytest.mark.parametrize("shape", [(600, 512), (2500, 60)], ids=str)
def test_number_of_threads_changes_nothing(shape):
    gradient = make_gradient(shape, 1)
    results, before = [], numba.get_num_threads()
    try:
        for threads in (1, min(2, before)):
            numba.set_num_threads(threads)
            tensors = [ops.zeros(shape), *zero_state(shape)]
            for step in (1, 2):
                tensors = fused(
                    tensors[0],
                    ops.convert_to_tensor(gradient),
                    tensors[1:],
                    ops.convert_to_tensor(step, "int32"),
                )
            results.append([to_numpy(x) for x in tensors])
    finally:
        numba.set_num_threads(before)
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.quick
def test_gradient_of_another_dtype():
    shape = (40, 64)
    gradient = ops.cast(make_gradient(shape, 1), "bfloat16")
    step = ops.convert_to_tensor(1, "int32")
    results = [
        fused(ops.ones(shape), g, zero_state(shape), step)
        for g in (gradient, ops.cast(gradient, "float32"))
    ]
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(to_numpy(x), to_numpy(y))


def served(parameter):
    shape = tuple(parameter.shape)
    row = Row(parameter, zero_state(shape), ops.ones(shape), 0)
    arguments = Adam8bitArguments(learning_rate=RATE, step=1)
    (result,) = do_steps([row], arguments)
    return result is not None


def test_what_is_left_to_the_portable_form():
    assert served(ops.ones((4, 64)))
    assert not served(ops.ones((4, 64), "float16"))
    config.set_kernels("off")
    assert not served(ops.ones((4, 64)))


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has strides")
def test_tensors_that_are_not_contiguous_are_left_to_the_portable_form():
    assert not served(ops.ones((64, 4)).T)


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch is in place")
def test_memory_is_that_of_the_variables():
    variable = keras.Variable(np.ones((64, 128), "float32"))
    optimizer = Adam8bit(0.1)
    optimizer.build([variable])
    variables = [variable, *optimizer._states[0]]
    places = [v.value.data_ptr() for v in variables]
    optimizer.apply([ops.ones((64, 128))], [variable])
    assert places == [v.value.data_ptr() for v in variables]
    assert (to_numpy(variable) < 1).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there steps compile")
def test_eager_steps_are_traced_once(monkeypatch):
    traced = []
    monkeypatch.setattr(
        Adam8bit,
        "update_step",
        lambda self, gradient, variable, learning_rate: traced.append(variable),
    )
    variable = keras.Variable(np.ones((64, 128), "float32"))
    optimizer = Adam8bit(0.1)
    optimizer.build([variable])
    for _ in range(3):
        optimizer.apply([ops.ones((64, 128))], [variable])
    assert len(traced) == 1


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX shards variables")
def test_distribution_is_left_to_the_portable_form():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        assert not served(ops.ones((4, 64)))
    finally:
        keras.distribution.set_distribution(None)


# Whole trainings


def train(kernels, optimizer, compile_options):
    config.set_kernels(kernels)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Embedding(50, 24),
            keras.layers.Flatten(),
            keras.layers.Dense(65, "relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", **compile_options)
    x = np.random.default_rng(0).integers(0, 50, size=(96, 8))
    y = x.mean(axis=1, keepdims=True) / 25 - 1
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    weights = [to_numpy(v) for v in model.trainable_variables]
    return history.history["loss"], weights


def compilations():
    if BACKEND == "tensorflow":
        return {
            "eager": {"run_eagerly": True},
            "graph": {"jit_compile": False},
            "xla": {"jit_compile": True},
        }
    return {"default": {}}


def check_training(make_optimizer, compile_options):
    (loss, weights), (expected_loss, expected) = (
        train(kernels, make_optimizer(), compile_options)
        for kernels in ("auto", "off")
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-3)
    assert loss[-1] < loss[0]
    for x, y in zip(weights, expected, strict=True):
        # A last digit may move one code, and that others, step by step.
        assert np.mean(np.abs(x - y) > 1e-4) < 0.02


@pytest.mark.parametrize("compilation", compilations())
def test_training_is_the_same(compilation):
    check_training(
        lambda: Adam8bit(5e-3, min_size=0, weight_decay=0.01),
        compilations()[compilation],
    )


def test_training_with_accumulation_and_average():
    check_training(
        lambda: Adam8bit(
            5e-3, min_size=0, use_ema=True, gradient_accumulation_steps=2
        ),
        {},
    )


def test_training_with_loss_scale():
    check_training(
        lambda: keras.optimizers.LossScaleOptimizer(
            Adam8bit(5e-3, min_size=0), initial_scale=64.0
        ),
        {},
    )
