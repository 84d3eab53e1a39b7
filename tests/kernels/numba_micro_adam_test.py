"""The kernel of MicroAdam against its portable form, on each backend."""

import collections
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import config
from keras_efficient.kernels import policy
from keras_efficient.ops import MicroAdamState
from keras_efficient.ops import dispatch
from keras_efficient.ops import micro_adam_step
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.ops.weight_rounding import round_weight
from keras_efficient.optimizers import MicroAdam
from tests.compilers import compiled
from tests.optimizers.table import check_close
from tests.optimizers.table import normal

numba = pytest.importorskip("numba")

BACKEND = keras.config.backend()
if policy.choose_for(BACKEND, "cpu") != "numba":
    pytest.skip("no kernels", allow_module_level=True)

Layout = collections.namedtuple("Layout", ("block", "bucket", "k", "window"))
SMALL = Layout(block=256, bucket=64, k=3, window=4)
LARGE = Layout(block=4096, bucket=128, k=41, window=3)
DENSE = Layout(block=64, bucket=32, k=64, window=3)
SORTED = Layout(block=160, bucket=80, k=40, window=3)
EMPTY = Layout(block=256, bucket=64, k=0, window=1)
ODD = Layout(block=90, bucket=6, k=2, window=3)
PAPER = {"alpha": 0.0, "bias_correction": "full", "rounding": "nearest"}
STEPS = (1, 2, 5, 6, 20, 21)  # the tensor has no gradient in between
FLOAT32, BFLOAT16 = "float32", "bfloat16"


def zero_state(size, layout, value_dtype):
    blocks = math.ceil(size / layout.block)
    buckets = math.ceil(size / layout.bucket)
    entries = (layout.window, blocks, layout.k)
    slots = MicroAdamState(
        indices=(entries, "uint8" if layout.block <= 256 else "int16"),
        values=(entries, value_dtype),
        written=((layout.window,), "int32"),
        codes=((buckets, layout.bucket // 2), "uint8"),
        low=((buckets, 1), BFLOAT16),
        high=((buckets, 1), BFLOAT16),
        velocity=((blocks, 1), FLOAT32),
    )
    return [ops.convert_to_tensor(np.zeros(s), dtype) for s, dtype in slots]


def make_gradient(shape, dtype, seed):
    """Return numbers of which no two in a block of 256 are equal."""
    if dtype == FLOAT32:
        gradient = normal(*shape, seed=seed).reshape(-1)
    else:
        rng = np.random.default_rng(seed)
        size = math.prod(shape)
        bits = [rng.permutation(256) for _ in range(size // 256 + 1)]
        bits = (np.concatenate(bits)[:size] + 0x3E00).astype("uint32") << 16
        gradient = bits.view(FLOAT32) * rng.choice([-1, 1], size=size)
    if gradient.size > 100:
        gradient[[7, 50, 99]] = np.nan, -np.inf, 2e18
    return ops.convert_to_tensor(gradient.reshape(shape), dtype)


def portable(parameter, gradient, state, step, **options):
    state = MicroAdamState(*state)
    u, state = micro_adam_step(gradient, state, step, **options)
    moved = ops.cast(parameter, FLOAT32) - 0.01 * u
    if is_16_bit(parameter):
        moved = round_weight(moved, BFLOAT16)
    return moved, *state


def do_step(parameter, gradient, state, step, layout, seed=0, **options):
    arguments = MicroAdamArguments(
        learning_rate=0.01,
        step=step,
        window=layout.window,
        k=layout.k,
        bucket_size=layout.bucket,
        **{"block_size": layout.block, **options},
    )
    row = dispatch.Row(parameter, tuple(state), gradient, seed)
    (results,) = dispatch.do_steps([row], arguments)
    return results


def fused(*args, layout=SMALL, **options):
    results = do_step(*args, layout=layout, **options)
    assert results is not None
    return results


def to_numpy(tensors):
    arrays = []
    for x in tensors:
        if keras.backend.standardize_dtype(x.dtype) == BFLOAT16:
            x = ops.cast(x, FLOAT32)
        arrays.append(np.asarray(ops.convert_to_numpy(x)))
    return arrays


def check_equal(actual, expected, dtype):
    types = [keras.backend.standardize_dtype(x.dtype) for x in actual]
    assert types == [keras.backend.standardize_dtype(x.dtype) for x in expected]
    a, b = to_numpy(actual), to_numpy(expected)
    assert [x.shape for x in a] == [x.shape for x in b]
    # A rounding of bfloat16 may go the other way, once in a while.
    close = np.isclose(a[0], b[0], rtol=2e-5, atol=1e-6)
    assert np.mean(~close) <= (0.0 if dtype == FLOAT32 else 1e-2)
    np.testing.assert_allclose(a[7], b[7], rtol=1e-6)
    # Which of the zeros behind the end is chosen makes no difference.
    a[1], b[1] = (np.where(x[2] == 0, 0, x[1]) for x in (a, b))
    for x, y in zip(a[1:7], b[1:7], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "shape, layout, value_dtype, dtype, options",
    [
        ((1,), SMALL, BFLOAT16, FLOAT32, {}),
        ((123,), SMALL, BFLOAT16, FLOAT32, {"rounding": "nearest"}),
        ((255,), SMALL, FLOAT32, FLOAT32, {"alpha": 0.0}),
        ((256,), SMALL, BFLOAT16, FLOAT32, {"bias_correction": "full"}),
        ((257,), SMALL, BFLOAT16, FLOAT32, {"seed": 3}),
        ((4097,), SMALL, BFLOAT16, BFLOAT16, {}),
        ((4097,), SMALL, BFLOAT16, BFLOAT16, PAPER),
        ((4097,), LARGE, BFLOAT16, FLOAT32, {"beta_1": 0.0}),
        ((3, 3, 5, 7), SMALL, BFLOAT16, FLOAT32, {}),
        ((130,), DENSE, FLOAT32, FLOAT32, {}),
        ((700,), EMPTY, BFLOAT16, FLOAT32, {}),
        ((411,), SORTED, BFLOAT16, FLOAT32, {}),
        ((300,), ODD, BFLOAT16, FLOAT32, {}),
        ((300,), ODD, BFLOAT16, FLOAT32, PAPER),
        ((2**17 + 5,), SMALL, BFLOAT16, FLOAT32, {}),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, tuple) else str(x),
)
def test_equals_the_portable_form(shape, layout, value_dtype, dtype, options):
    options = {"block_size": layout.block, **options}

    def both(actual, expected, gradient, step):
        (x, *state), (y, *same) = actual, expected
        return (
            fused(x, gradient, state, step, layout=layout, **options),
            portable(y, gradient, same, step, **options),
        )

    # Step by step, TensorFlow divides with an error of a last digit.
    both = compiled(both, "xla")
    parameter = ops.convert_to_tensor(normal(*shape), dtype)
    state = zero_state(math.prod(shape), layout, value_dtype)
    actual = [parameter, *state]
    expected = [ops.copy(x) for x in actual]
    for step in STEPS:
        gradient = make_gradient(shape, dtype, seed=step)
        step = ops.convert_to_tensor(step, "int32")
        actual, expected = both(actual, expected, gradient, step)
        check_equal(actual, expected, dtype)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="compares its ways to run")
@pytest.mark.parametrize("is_graph", [False, True])
def test_eager_and_graph(is_graph):
    import tensorflow as tf

    run = tf.function(fused, autograph=False) if is_graph else fused
    actual = [tf.constant(normal(4097)), *zero_state(4097, SMALL, BFLOAT16)]
    expected = actual
    for step in STEPS:
        gradient = make_gradient((4097,), FLOAT32, seed=step)
        step = tf.constant(step)
        actual = run(actual[0], gradient, actual[1:], step)
        expected = portable(expected[0], gradient, expected[1:], step)
        # A division that differs by a last digit may move a code.
        check_close(to_numpy(actual), to_numpy(expected), 1e-4, outliers=1e-2)


@pytest.mark.quick
def test_equal_magnitudes_are_taken_in_order():
    gradient = ops.convert_to_tensor(normal(1)[0] * np.tile([1, -1], 150))
    gradient = ops.cast(gradient, FLOAT32)
    state = zero_state(300, SMALL, BFLOAT16)
    results = fused(ops.zeros((300,)), gradient, state, 1)
    indices = to_numpy(results)[1][0]
    np.testing.assert_array_equal(indices, [[0, 1, 2]] * 2)


def test_threads_change_nothing():
    from keras_efficient.kernels.cpu.micro_adam import micro_adam

    size, results = 2**18 + 300, []
    options = [0.9, 0.1, 0.999, 0.001, 1e-7, 0.4, 0.6]
    count = numba.get_num_threads()
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            arrays = [normal(size), np.zeros(0, "int8")]
            arrays += to_numpy(zero_state(size, SMALL, FLOAT32))
            for i in (6, 7):
                bounds = ops.convert_to_numpy(ops.zeros(1, BFLOAT16)).dtype
                arrays[i] = arrays[i].astype(bounds)
            for step in (1, 2):
                micro_adam(
                    *arrays,
                    normal(size, seed=step),
                    0.01,
                    0.1,
                    0.001,
                    step,
                    np.array(options, FLOAT32),
                    256,
                    0,
                    np.zeros(0, "int32"),
                    np.float32(0),
                    False,
                    True,
                    True,
                    False,
                )
            results.append(arrays)
    finally:
        numba.set_num_threads(count)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_no_kernel_serves():
    def run(size, dtype):
        x = ops.zeros((size,), dtype)
        return do_step(x, x, zero_state(size, SMALL, BFLOAT16), 1, SMALL)

    assert run(0, FLOAT32) is None
    assert run(256, "float16") is None
    assert run(256, FLOAT32) is not None
    before = config.kernels()
    config.set_kernels("off")
    try:
        assert run(256, FLOAT32) is None
    finally:
        config.set_kernels(before)


def fit(kernels, jit_compile):
    before = config.kernels()
    config.set_kernels(kernels)
    try:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(96, activation="tanh"),
                keras.layers.Dense(64),
            ]
        )
        model.compile(MicroAdam(1e-2), "mse", jit_compile=jit_compile)
        x = normal(128, 64)
        history = model.fit(x, x, 32, epochs=2, verbose=0, shuffle=False)
        return history.history["loss"], model.get_weights()
    finally:
        config.set_kernels(before)


@pytest.mark.parametrize(
    "jit_compile",
    {"jax": [True], "tensorflow": [False, True], "torch": [False]}[BACKEND],
)
def test_fit_with_and_without_kernels(jit_compile, monkeypatch):
    # Eight steps. A last digit now and then moves a code to the next step, and
    # after some more steps such entries are no longer few.
    served = []

    do_steps = dispatch.do_steps

    def spy(*args):
        results = do_steps(*args)
        served.extend(result is not None for result in results)
        return results

    monkeypatch.setattr(dispatch, "do_steps", spy)
    losses, weights = fit("auto", jit_compile)
    assert served and all(served)
    served.clear()
    expected_losses, expected = fit("off", jit_compile)
    assert served and not any(served)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    check_close(weights, expected, 1e-4, outliers=1e-2)
