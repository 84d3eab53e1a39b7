"""What holds for all optimizers with moments of one byte."""

import math
import os
import subprocess
import sys
import textwrap

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

BACKEND = keras.config.backend()
CLASSES = [Adam8bit, AdamW8bit, Lion8bit, SGD8bit]
TWINS = {
    Adam8bit: keras.optimizers.Adam,
    AdamW8bit: keras.optimizers.AdamW,
    Lion8bit: keras.optimizers.Lion,
    SGD8bit: keras.optimizers.SGD,
}
MOMENTS = {Adam8bit: 2, AdamW8bit: 2, Lion8bit: 1, SGD8bit: 1}
ITEMSIZE = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}

each_class = pytest.mark.parametrize("cls", CLASSES)


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


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


def to_numpy(tensors):
    return [
        np.asarray(ops.convert_to_numpy(x)).astype("float64") for x in tensors
    ]


def apply(optimizer, variables, gradients):
    gradients = [
        None if g is None else ops.convert_to_tensor(g, v.dtype)
        for g, v in zip(gradients, variables, strict=True)
    ]
    optimizer.apply(gradients, variables)
    return to_numpy(variables)


def compiled_apply(optimizer, variables):
    """Return a function of the gradients; on JAX, stateless and compiled."""
    if BACKEND != "jax":
        return lambda gradients: apply(optimizer, variables, gradients)

    import jax

    optimizer.build(variables)
    step_fn = jax.jit(optimizer.stateless_apply)
    tensors = [*variables, *optimizer.variables]

    def run(gradients):
        values, state = step_fn(
            [v.value for v in optimizer.variables],
            gradients,
            [v.value for v in variables],
        )
        for tensor, value in zip(tensors, [*values, *state], strict=True):
            tensor.assign(value)
        return to_numpy(variables)

    return run


def state_of(optimizer):
    """Return the variables of the optimizer less iterations, learning rate."""
    known = {id(optimizer._iterations), id(optimizer._learning_rate)}
    return [v for v in optimizer.variables if id(v) not in known]


def check_equal(actual, expected):
    for a, b in zip(to_numpy(actual), to_numpy(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def make_model(dtype=None, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(128, "relu", dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )


def make_data(size=64):
    x = normal(size, 32)
    return x, 2 * x[:, :1] + np.sin(x[:, 1:2])


# State


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
    assert layouts[0] == layouts[1]
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


# The step


@each_class
def test_small_tensors_follow_keras(cls):
    options = {"weight_decay": 0.1}
    if cls is SGD8bit:
        options.update(momentum=0.8, nesterov=True)
    elif MOMENTS[cls] == 2:
        options.update(epsilon=1e-12)  # which Keras adds in another place
    optimizers = [cls(0.1, min_size=10**6, **options)]
    optimizers.append(TWINS[cls](0.1, **options))
    actual, expected = make_variables(), make_variables()
    for step in range(15):
        x = apply(optimizers[0], actual, make_gradients(step))
        y = apply(optimizers[1], expected, make_gradients(step))
        for a, b in zip(x, y, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@each_class
def test_large_tensors_stay_near_keras(cls):
    options = {"momentum": 0.9} if cls is SGD8bit else {}
    optimizers = [cls(0.1, **options), TWINS[cls](0.1, **options)]
    actual, expected = make_variables(), make_variables()
    start = to_numpy(actual)[0]
    for step in range(20):
        x = apply(optimizers[0], actual, make_gradients(step))[0]
        y = apply(optimizers[1], expected, make_gradients(step))[0]
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
    state = zero_state((64, 96))[: 2 * MOMENTS[cls]]
    expected = np.zeros((64, 96))
    for step in range(1, 4):
        gradient = make_gradients(step)[0]
        actual = apply(optimizer, variables, [gradient, gradient])[1]
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


@each_class
def test_tensor_without_gradient_keeps_its_state(cls):
    variables, optimizer = make_variables(), cls(0.1, weight_decay=0.0)
    apply(optimizer, variables, make_gradients(0))
    before = to_numpy([variables[0], *state_of(optimizer)[: 2 * MOMENTS[cls]]])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        apply(optimizer, variables, [None, make_gradients(1)[1]])
    after = to_numpy([variables[0], *state_of(optimizer)[: 2 * MOMENTS[cls]]])
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


@each_class
def test_zero_gradients_move_nothing(cls):
    variables, optimizer = make_variables(), cls(weight_decay=0.0)
    for _ in range(3):
        apply(optimizer, variables, make_gradients(0, scale=0.0))
    check_equal(variables, make_variables())


@each_class
@pytest.mark.parametrize("min_size", [4096, 0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (5, 0)], ids=str)
def test_tensors_of_no_and_of_one_element(cls, shape, min_size):
    variable = keras.Variable(np.ones(shape, "float32"))
    optimizer = cls(0.1, min_size=min_size, weight_decay=0.0)
    for _ in range(2):
        after = apply(optimizer, [variable], [np.ones(shape)])[0]
    assert after.shape == shape and (after < 0.85).all()


@each_class
@pytest.mark.parametrize("everywhere", [False, True])
def test_faulty_gradients_never_enter_the_state(cls, everywhere):
    optimizers = [cls(), cls()]
    variables = [make_variables(), make_variables()]
    for step in range(4):
        faulty, clean = make_gradients(step), make_gradients(step)
        if step == 1:
            places = slice(None) if everywhere else slice(None, None, 7)
            faulty[0][places], clean[0][places] = np.nan, 0.0
            for bad, zero in zip(faulty, clean, strict=True):
                bad[:1], zero[:1] = np.inf, 0.0
        before = to_numpy(variables[0])
        after = apply(optimizers[0], variables[0], faulty)
        expected = apply(optimizers[1], variables[1], clean)
        for x, y in zip(after, expected, strict=True):
            np.testing.assert_array_equal(x, y)
        for x in to_numpy(optimizers[0].variables):
            assert np.isfinite(x).all()
        assert step == 1 or (after[0] != before[0]).any()


@each_class
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_variables(cls, dtype):
    variables, optimizer = make_variables(dtype), cls(0.1)
    before = to_numpy(variables)
    for step in range(3):
        after = apply(optimizer, variables, make_gradients(step))
    for variable, x, y in zip(variables, after, before, strict=True):
        assert variable.dtype == dtype
        assert np.isfinite(x).all() and (x != y).any()


# What every Keras optimizer can do


@each_class
def test_learning_rate_schedule(cls):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.1, 0.01, 0.5]
    )
    scheduled, manual = cls(schedule), cls(0.1)
    actual, expected = make_variables(), make_variables()
    for step, learning_rate in enumerate([0.1, 0.01, 0.5]):
        manual.learning_rate = learning_rate
        apply(scheduled, actual, make_gradients(step))
        apply(manual, expected, make_gradients(step))
        check_equal(actual, expected)


@each_class
def test_weight_decay_and_what_is_excluded_from_it(cls):
    decayed, plain = cls(0.1, weight_decay=0.2), cls(0.1, weight_decay=0.0)
    decayed.exclude_from_weight_decay(var_names=["bias"])
    actual, reference = make_variables(), make_variables()
    expected = to_numpy(actual)
    for step in range(3):
        before = to_numpy(reference)
        after = apply(plain, reference, make_gradients(step))
        expected[0] = expected[0] * (1 - 0.1 * 0.2) + after[0] - before[0]
        expected[1] = after[1]
        apply(decayed, actual, make_gradients(step))
        for x, y in zip(to_numpy(actual), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_adamw_decays_by_default():
    kernels = []
    for optimizer in (AdamW8bit(0.1), Adam8bit(0.1, weight_decay=0.004)):
        variables = make_variables()
        apply(optimizer, variables, make_gradients(0))
        kernels.append(variables)
    check_equal(*kernels)
    variables = make_variables()
    apply(Adam8bit(0.1), variables, make_gradients(0))
    assert (to_numpy(variables)[0] != to_numpy(kernels[0])[0]).any()


@each_class
def test_clipnorm(cls):
    clipped, plain = cls(0.1, clipnorm=1.0), cls(0.1)
    actual, expected = make_variables(), make_variables()
    for step in range(3):
        gradients = make_gradients(step)
        apply(clipped, actual, gradients)
        gradients = [g / np.linalg.norm(g) for g in gradients]
        apply(plain, expected, gradients)
    for x, y in zip(to_numpy(actual), to_numpy(expected), strict=True):
        # a gradient that differs by one rounding may move one code
        assert np.mean(np.abs(x - y) > 1e-4) < 1e-2


@each_class
def test_exponential_average(cls):
    variables = make_variables()
    optimizer = cls(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    )
    plain, reference = cls(0.1), make_variables()
    averages = None
    for step in range(3):
        apply(optimizer, variables, make_gradients(step))
        values = apply(plain, reference, make_gradients(step))
        averages = [
            # Keras starts the average at 0 and its momentum at 0
            x if step == 0 else 0.5 * average + 0.5 * x
            for x, average in zip(values, averages or values, strict=True)
        ]
    for x, y in zip(to_numpy(variables), averages, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@each_class
def test_gradient_accumulation(cls):
    accumulating = cls(0.1, gradient_accumulation_steps=2)
    plain = cls(0.1)
    actual, expected = make_variables(), make_variables()
    for step in range(2):
        # few digits, so that their mean is exact
        halves = [
            [np.round(4 * g) / 4 for g in make_gradients(2 * step + half)]
            for half in range(2)
        ]
        before = to_numpy(actual)
        after = apply(accumulating, actual, halves[0])
        for x, y in zip(after, before, strict=True):
            np.testing.assert_array_equal(x, y)
        apply(accumulating, actual, halves[1])
        means = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
        apply(plain, expected, means)
        check_equal(actual, expected)


@each_class
def test_loss_scale_optimizer(cls):
    inner, plain = cls(0.1), cls(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    actual, expected = make_variables(), make_variables()
    apply_scaled = compiled_apply(scaled, actual)
    for step in range(2):
        apply_scaled(make_gradients(step, scale=1024.0))
        apply(plain, expected, make_gradients(step))
        for x, y in zip(to_numpy(actual), to_numpy(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    before = to_numpy([*inner.variables, *actual])
    overflow = make_gradients(2)
    overflow[0][0, 0] = np.inf
    apply_scaled(overflow)
    after = to_numpy([*inner.variables, *actual])
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


# Under fit

MODES = (
    [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}]
    if BACKEND == "tensorflow"
    else [{}]
)


@each_class
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_fit(cls, mode, monkeypatch):
    calls = []
    update_step = cls.update_step

    def counted(self, *args):
        calls.append(args)
        return update_step(self, *args)

    monkeypatch.setattr(cls, "update_step", counted)
    model = make_model()
    model.compile(cls(3e-3 if cls is Lion8bit else 1e-2), "mse", **mode)
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    traced = len(calls)
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    if BACKEND != "torch" and "run_eagerly" not in mode:
        assert len(calls) == traced


@each_class
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_fit_in_bfloat16(cls, dtype):
    model = make_model(dtype=dtype)
    model.compile(cls(3e-3 if cls is Lion8bit else 1e-2), "mse")
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    expected = "bfloat16" if dtype == "bfloat16" else "float32"
    assert {v.dtype for v in model.trainable_variables} == {expected}


@each_class
def test_saved_and_restored_training_goes_on_exactly(cls, tmp_path):
    def fit(model, part):
        model.fit(x[part], y[part], batch_size=16, shuffle=False, verbose=0)

    x, y = make_data(160)
    first, second = slice(0, 80), slice(80, 160)  # 5 steps each
    models = [make_model(), make_model()]
    for model in models:
        model.compile(cls(1e-2), "mse")
        fit(model, first)
    models[0].save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is cls
    assert restored.optimizer.get_config() == models[0].optimizer.get_config()
    check_equal(restored.optimizer.variables, models[0].optimizer.variables)
    for model in (models[1], restored):
        fit(model, second)
        assert int(model.optimizer.iterations) == 10
    check_equal(restored.variables, models[1].variables)
    check_equal(restored.optimizer.variables, models[1].optimizer.variables)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients"
)
@each_class
def test_sparse_gradient_of_an_embedding(cls):
    import tensorflow as tf

    table = normal(64, 64)
    sparse, dense = (keras.Variable(table), keras.Variable(table))
    optimizers = [cls(0.1), cls(0.1)]
    for step in range(3):
        indices = np.array([1, 5, 1, 7])
        values = np.round(4 * normal(4, 64, seed=step)) / 4
        gradient = np.zeros_like(table)
        np.add.at(gradient, indices, values)
        slices = tf.IndexedSlices(values, indices, table.shape)
        optimizers[0].apply([slices], [sparse])
        optimizers[1].apply([tf.constant(gradient)], [dense])
        check_equal([sparse], [dense])
    assert (to_numpy([sparse])[0] != table).any()


SHARDED = """
    import keras
    import numpy as np
    from keras_efficient.optimizers import Adam8bit

    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    # broad enough to meet the variables of the optimizer, too
    layouts[".*wide.*kernel.*"] = (None, "model")
    layouts[".*tall.*kernel.*"] = ("model", None)

    def train():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([
            keras.Input((64,)),
            keras.layers.Dense(128, "relu", name="wide"),
            keras.layers.Dense(64, name="tall"),
            keras.layers.Dense(10, name="flat"),
        ])
        model.compile(Adam8bit(1e-2, min_size=640), "mse")
        x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
        history = model.fit(x, x[:, :10], epochs=3, batch_size=16, verbose=0)
        return model, history.history["loss"]

    _, expected = train()
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch"
        )
    )
    model, actual = train()
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    shards = {
        (v.path.split("/")[-1], tuple(v.shape)): tuple(
            v.value.addressable_shards[0].data.shape
        )
        for v in model.optimizer.variables
    }
    for moment in ("momentum", "velocity"):
        for layer, shape, codes, scale in (
            ("wide", (64, 128), (64, 32), (64, 4)),
            ("tall", (128, 64), (32, 64), (32, 2)),
            ("flat", (64, 10), (64, 10), (20,)),
        ):
            name = f"{layer}_kernel_{moment}"
            (found,) = [
                s for (n, _), s in shards.items() if n.endswith(name + "_codes")
            ]
            assert found == codes, (name, found)
            (found,) = [
                s for (n, _), s in shards.items() if n.endswith(name + "_scale")
            ]
            assert found == scale, (name, found)
    print("sharded")
"""


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="only JAX shards variables")
def test_state_shards_with_its_parameter():
    flags = "--xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "sharded", result.stderr


# Configuration

CONFIGS = {
    Adam8bit: {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-5},
    AdamW8bit: {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-5},
    Lion8bit: {"beta_1": 0.8, "beta_2": 0.98},
    SGD8bit: {"momentum": 0.8, "nesterov": True},
}


@each_class
def test_config_round_trip(cls):
    config = {
        **CONFIGS[cls],
        "min_size": 100,
        "weight_decay": 0.01,
        "clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 5,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 3,
        "name": "other",
    }
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    for learning_rate in (0.25, schedule):
        optimizer = cls(learning_rate, **config)
        actual = optimizer.get_config()
        assert config.items() <= actual.items()
        assert cls.from_config({**actual}).get_config() == actual
        serialized = keras.optimizers.serialize(optimizer)
        restored = keras.optimizers.deserialize(serialized)
        assert type(restored) is cls
        assert restored.get_config() == actual


@each_class
def test_defaults_are_those_of_keras(cls):
    expected = TWINS[cls]().get_config()
    if cls is SGD8bit:
        expected["momentum"] = 0.9
    actual = cls().get_config()
    for name in set(expected) & set(actual) - {"name"}:
        assert actual[name] == pytest.approx(expected[name]), name
    assert actual["min_size"] == 4096


@each_class
def test_found_by_name(cls):
    optimizer = keras.optimizers.get(f"keras_efficient>{cls.__name__}")
    assert type(optimizer) is cls
    assert optimizer.get_config() == cls().get_config()


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (Adam8bit, {"beta_1": 1.0}, r"`beta_1` must be in \[0, 1\).*beta_1=1"),
        (Adam8bit, {"beta_2": -0.1}, r"`beta_2` must be in .*beta_2=-0.1"),
        (Adam8bit, {"epsilon": 0.0}, "`epsilon` must be positive.*epsilon=0"),
        (AdamW8bit, {"weight_decay": None}, "`weight_decay` must be a float"),
        (AdamW8bit, {"beta_1": 1.5}, r"`beta_1` must be in .*beta_1=1.5"),
        (Lion8bit, {"beta_1": -1}, r"`beta_1` must be in .*beta_1=-1"),
        (Lion8bit, {"beta_2": 1.0}, r"`beta_2` must be in .*beta_2=1.0"),
        (SGD8bit, {"momentum": 0.0}, r"`momentum` must be in \(0, 1\).*=0.0"),
        (SGD8bit, {"momentum": 1.0}, r"`momentum` must be in \(0, 1\).*=1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
