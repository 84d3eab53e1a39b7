import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import MicroAdamState
from keras_efficient.ops import micro_adam_step
from keras_efficient.optimizers import MicroAdam

BACKEND = keras.config.backend()

STATE_DTYPES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
}


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def make_variables(dtype="float32"):
    """Return a matrix with a compressed state and a vector with Adam's."""
    return [
        keras.Variable(normal(64, 64, seed=1), dtype=dtype, name="kernel"),
        keras.Variable(normal(64, seed=2), dtype=dtype, name="bias"),
    ]


def make_gradients(step, scale=1.0):
    return [
        scale * normal(64, 64, seed=[3, step]),
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
    """Return a function of the gradients, compiled on JAX to save time."""
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
            keras.layers.Dense(128, "relu", use_bias=False, dtype=dtype),
            keras.layers.Dense(1, use_bias=False, dtype=dtype),
        ]
    )


def make_data(size=64):
    x = normal(size, 32)
    return x, 2 * x[:, :1] + np.sin(x[:, 1:2])


# State


@pytest.mark.parametrize(
    "shape",
    [
        *((64, 64), (65, 64), (100, 77), (1000, 300), (4096, 1024)),
        *((3, 3, 64, 64), (5, 1, 7, 129)),
    ],
    ids=str,
)
def test_state_takes_less_than_a_byte_a_parameter(shape):
    optimizer = MicroAdam()
    optimizer.build([keras.Variable(ops.zeros(shape))])
    total = sum(
        math.prod(v.shape) * STATE_DTYPES[v.dtype] for v in state_of(optimizer)
    )
    assert total <= 0.95 * math.prod(shape)


@pytest.mark.parametrize("block_size, dtype", [(256, "uint8"), (320, "int16")])
def test_state_dtypes(block_size, dtype):
    optimizer = MicroAdam(block_size=block_size)
    optimizer.build(make_variables("bfloat16"))
    dtypes = [v.dtype for v in state_of(optimizer)]
    expected = [dtype, "bfloat16", "int32", "uint8", "bfloat16", "bfloat16"]
    assert dtypes == [*expected, "float32", "float32"]
    assert set(dtypes) <= set(STATE_DTYPES)


def test_state_does_not_depend_on_the_dtype_of_the_variable():
    layouts = []
    for dtype in ("float32", "bfloat16"):
        optimizer = MicroAdam()
        optimizer.build(make_variables(dtype))
        layouts.append([(v.shape, v.dtype) for v in state_of(optimizer)])
    assert layouts[0] == layouts[1]


# The step


def test_equals_adam_when_everything_enters_the_window():
    options = {"learning_rate": 1.0, "epsilon": 1e-12}
    micro_adam, adam = (
        compiled_apply(optimizer, [keras.Variable(ops.zeros((64, 64)))])
        for optimizer in (
            MicroAdam(density=1.0, value_dtype="float32", **options),
            keras.optimizers.Adam(**options),
        )
    )
    for step in range(11):
        gradients = make_gradients(step)[:1]
        difference = np.abs(micro_adam(gradients)[0] - adam(gradients)[0])
        # The window covers ten steps.
        assert (difference.max() < 1e-5) == (step < 10)


def test_small_tensors_follow_adam():
    options = {"learning_rate": 0.1, "epsilon": 1e-12}
    actual, expected = make_variables()[1:], make_variables()[1:]
    micro_adam, adam = MicroAdam(**options), keras.optimizers.Adam(**options)
    for step in range(15):
        gradients = make_gradients(step)[1:]
        x = apply(micro_adam, actual, gradients)
        y = apply(adam, expected, gradients)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_min_size_decides_which_tensors_are_small():
    for min_size, states in ((4096, 6), (4097, 2)):
        optimizer = MicroAdam(min_size=min_size)
        optimizer.build(make_variables()[:1])
        assert len(state_of(optimizer)) == states


def zero_state(**options):
    optimizer = MicroAdam(**options)
    optimizer.build(make_variables()[:1])
    return MicroAdamState(*map(ops.convert_to_tensor, state_of(optimizer)))


def test_options_reach_the_step():
    state_options = {"block_size": 320, "bucket_size": 32, "window": 2}
    step_options = {
        "beta_1": 0.8,
        "beta_2": 0.9,
        "epsilon": 0.1,
        "rounding": "nearest",
        "bias_correction": "window",
    }
    variable = keras.Variable(np.zeros((64, 64), "float32"))
    optimizer = MicroAdam(0.1, **state_options, **step_options)
    apply_compiled = compiled_apply(optimizer, [variable])
    state = zero_state(**state_options)
    expected = np.zeros((64, 64))

    def step_fn(gradient, state, step):
        state = MicroAdamState(*state)
        return micro_adam_step(
            gradient, state, step, block_size=320, **step_options
        )

    if BACKEND == "jax":
        import jax

        step_fn = jax.jit(step_fn)
    for step in range(1, 5):
        gradients = make_gradients(step)[:1]
        actual = apply_compiled(gradients)[0]
        gradient = ops.convert_to_tensor(gradients[0])
        update, state = step_fn(gradient, state, step)
        expected = expected - 0.1 * to_numpy([update])[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_tensor_without_gradient_keeps_its_state_and_its_age():
    variables = [
        keras.Variable(np.zeros((64, 64), "float32")),
        *make_variables(),
    ]
    optimizer, state = MicroAdam(learning_rate=0.1), zero_state()
    expected = np.zeros((64, 64))
    for step in range(1, 8):
        kernel, bias = make_gradients(step)
        if step in (1, 4, 5):
            apply(optimizer, variables, [kernel, kernel, bias])
            update, state = micro_adam_step(
                ops.convert_to_tensor(kernel), state, step, seed=0
            )
            expected = expected - 0.1 * to_numpy([update])[0]
        else:
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                apply(optimizer, variables, [None, kernel, bias])
        check_equal(optimizer.variables[2:8], state)
        np.testing.assert_allclose(
            to_numpy(variables)[0], expected, rtol=1e-6, atol=1e-6
        )


def test_zero_gradients_move_nothing():
    variables, optimizer = make_variables(), MicroAdam()
    for _ in range(3):
        apply(optimizer, variables, make_gradients(0, scale=0.0))
    check_equal(variables, make_variables())


@pytest.mark.parametrize("everywhere", [False, True])
def test_faulty_gradients_never_enter_the_state(everywhere):
    optimizers = [MicroAdam(), MicroAdam()]
    variables = [make_variables(), make_variables()]
    for step in range(4):
        faulty, clean = make_gradients(step), make_gradients(step)
        if step == 1:
            places = slice(None) if everywhere else slice(None, None, 7)
            for bad, zero in zip(faulty, clean, strict=True):
                bad[places], zero[places] = np.nan, 0.0
                bad[:1], zero[:1] = np.inf, 0.0
        before = to_numpy(variables[0])
        after = apply(optimizers[0], variables[0], faulty)
        expected = apply(optimizers[1], variables[1], clean)
        for x, y in zip(after, expected, strict=True):
            np.testing.assert_array_equal(x, y)
        for x in to_numpy(optimizers[0].variables):
            assert np.isfinite(x).all()
        assert step == 1 or (after[0] != before[0]).any()


def test_bfloat16_variables():
    variables, optimizer = make_variables("bfloat16"), MicroAdam(0.1)
    before = to_numpy(variables)
    for step in range(3):
        after = apply(optimizer, variables, make_gradients(step))
    for variable, x, y in zip(variables, after, before, strict=True):
        assert variable.dtype == "bfloat16"
        assert np.isfinite(x).all() and (x != y).any()


def test_seeds_differ_by_tensor():
    variables = [make_variables()[0], make_variables()[0]]
    optimizer, gradient = MicroAdam(), make_gradients(0)[0]
    apply(optimizer, variables, [gradient, gradient])
    first, second = (optimizer.variables[index] for index in (5, 11))
    assert first.name.endswith("codes") and second.name.endswith("codes")
    assert (to_numpy([first])[0] != to_numpy([second])[0]).any()


# What every Keras optimizer can do


def test_learning_rate_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.1, 0.01, 0.5]
    )
    scheduled, manual = MicroAdam(schedule), MicroAdam(0.1)
    actual, expected = make_variables(), make_variables()
    for step, learning_rate in enumerate([0.1, 0.01, 0.5]):
        manual.learning_rate = learning_rate
        apply(scheduled, actual, make_gradients(step))
        apply(manual, expected, make_gradients(step))
        check_equal(actual, expected)


def test_weight_decay_and_what_is_excluded_from_it():
    decayed, plain = MicroAdam(0.1, weight_decay=0.2), MicroAdam(0.1)
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


def test_clipnorm():
    clipped, plain = MicroAdam(0.1, clipnorm=1.0), MicroAdam(0.1)
    actual, expected = make_variables(), make_variables()
    for step in range(3):
        gradients = make_gradients(step)
        apply(clipped, actual, gradients)
        gradients = [g / np.linalg.norm(g) for g in gradients]
        apply(plain, expected, gradients)
    for x, y in zip(to_numpy(actual), to_numpy(expected), strict=True):
        # a gradient that differs by one rounding may move one 4-bit code
        assert np.mean(np.abs(x - y) > 1e-4) < 1e-2


def test_exponential_average():
    variables = make_variables()
    optimizer = MicroAdam(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    )
    plain, reference = MicroAdam(0.1), make_variables()
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


def test_gradient_accumulation():
    accumulating = MicroAdam(0.1, gradient_accumulation_steps=2)
    plain = MicroAdam(0.1)
    actual, expected = make_variables(), make_variables()
    for step in range(3):
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


def test_loss_scale_optimizer():
    inner, plain = MicroAdam(0.1), MicroAdam(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    actual, expected = make_variables(), make_variables()
    apply_scaled = compiled_apply(scaled, actual)
    for step in range(2):
        apply_scaled(make_gradients(step, scale=1024.0))
        apply(plain, expected, make_gradients(step))
        for x, y in zip(to_numpy(actual), to_numpy(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    state, expected = to_numpy(inner.variables), to_numpy(actual)
    overflow = make_gradients(2)
    overflow[0][0, 0] = np.inf
    apply_scaled(overflow)
    for x, y in zip(to_numpy(inner.variables), state, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(to_numpy(actual), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.skipif(BACKEND != "jax", reason="stateless_apply is for JAX")
def test_stateless_apply():
    actual, expected = make_variables(), make_variables()
    apply_stateless = compiled_apply(MicroAdam(0.1), actual)
    optimizer = MicroAdam(0.1)
    for step in range(3):
        apply_stateless(make_gradients(step))
        apply(optimizer, expected, make_gradients(step))
        for x, y in zip(to_numpy(actual), to_numpy(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


# Under fit


@pytest.mark.parametrize(
    "jit_compile", [True, False] if BACKEND == "tensorflow" else ["auto"]
)
def test_fit(jit_compile, monkeypatch):
    calls = []
    update_step = MicroAdam.update_step

    def counted(self, *args):
        calls.append(args)
        return update_step(self, *args)

    monkeypatch.setattr(MicroAdam, "update_step", counted)
    model = make_model()
    model.compile(MicroAdam(1e-2), "mse", jit_compile=jit_compile)
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    traced = len(calls)
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    if BACKEND != "torch":
        assert len(calls) == traced


def test_fit_in_mixed_bfloat16():
    model = make_model(dtype="mixed_bfloat16")
    model.compile(MicroAdam(1e-2), "mse")
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=4, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_saved_and_restored_training_goes_on_exactly(tmp_path):
    def fit(model):
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)

    x, y = make_data()
    model = make_model()
    model.compile(MicroAdam(1e-2, window=5, bias_correction="window"), "mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(restored.optimizer, MicroAdam)
    assert restored.optimizer.get_config() == model.optimizer.get_config()
    check_equal(restored.optimizer.variables, model.optimizer.variables)
    for m in (model, restored):
        fit(m)
    check_equal(restored.variables, model.variables)
    check_equal(restored.optimizer.variables, model.optimizer.variables)


has_sparse_gradients = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients"
)


@has_sparse_gradients
@pytest.mark.parametrize("rows", [64, 8])
def test_sparse_gradient_of_an_embedding(rows):
    import tensorflow as tf

    table = normal(rows, 64)
    sparse, dense = (keras.Variable(table), keras.Variable(table))
    optimizers = [MicroAdam(0.1), MicroAdam(0.1)]
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


@has_sparse_gradients
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_an_embedding(jit_compile):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Embedding(64, 64), keras.layers.Dense(1)]
    )
    model.compile(MicroAdam(1e-2), "mse", jit_compile=jit_compile)
    x = np.arange(64).reshape(64, 1)
    y = normal(64, 1, 1)
    losses = model.fit(x, y, batch_size=16, epochs=5, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < losses[0]


# Configuration


def test_config_round_trip():
    config = {
        "beta_1": 0.8,
        "beta_2": 0.99,
        "epsilon": 1e-5,
        "window": 7,
        "density": 0.02,
        "block_size": 1024,
        "bucket_size": 128,
        "min_size": 100,
        "rounding": "nearest",
        "bias_correction": "window",
        "value_dtype": "float32",
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
        optimizer = MicroAdam(learning_rate, **config)
        actual = optimizer.get_config()
        assert config.items() <= actual.items()
        restored = MicroAdam.from_config({**actual})
        assert restored.get_config() == actual
        serialized = keras.optimizers.serialize(optimizer)
        restored = keras.optimizers.deserialize(serialized)
        assert type(restored) is MicroAdam
        assert restored.get_config() == actual


def test_found_by_name():
    optimizer = keras.optimizers.get("keras_efficient>MicroAdam")
    assert type(optimizer) is MicroAdam
    assert optimizer.get_config() == MicroAdam().get_config()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta_1": 1.0}, r"`beta_1` must be in \[0, 1\).*beta_1=1.0"),
        ({"beta_2": -0.1}, r"`beta_2` must be in \[0, 1\).*beta_2=-0.1"),
        ({"epsilon": 0.0}, "`epsilon` must be positive.*epsilon=0.0"),
        ({"density": 0.0}, r"`density` must be in \(0, 1\].*density=0.0"),
        ({"density": 1.1}, r"`density` must be in \(0, 1\].*density=1.1"),
        ({"window": 0}, "`window` must be at least 1.*window=0"),
        ({"bucket_size": 63}, "`bucket_size` must be even.*bucket_size=63"),
        ({"bucket_size": 0}, "`bucket_size` must be even.*bucket_size=0"),
        ({"block_size": 2**16}, "from 1 to 32768.*int16.*block_size=65536"),
        ({"block_size": 0}, "from 1 to 32768.*block_size=0"),
        ({"block_size": 96}, "multiple of `bucket_size`.*block_size=96"),
        ({"rounding": "up"}, "`rounding` must be one of.*rounding=up"),
        (
            {"bias_correction": None},
            "`bias_correction` must be one of.*bias_correction=None",
        ),
        (
            {"value_dtype": "float16"},
            "`value_dtype` must be one of.*value_dtype=float16",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MicroAdam(**options)


def test_largest_block_is_accepted():
    assert MicroAdam(block_size=2**15).block_size == 2**15
