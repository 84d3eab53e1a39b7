import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import ld_adam_step
from keras_efficient.optimizers import LDAdam
from keras_efficient.utils import optimizer_state_bytes

BACKEND = keras.config.backend()

STATE_DTYPES = {
    "float32",
    "bfloat16",
    "float16",
    "int32",
    "int16",
    "int8",
    "uint8",
}


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def make_variables(dtype="float32"):
    """Return a matrix, a kernel of a convolution and a vector."""
    return [
        keras.Variable(normal(*shape, seed=i), dtype=dtype, name=name)
        for i, (name, shape) in enumerate(SHAPES.items())
    ]


def make_gradients(step, scale=1.0):
    return [
        scale * normal(*shape, seed=[3, step, i])
        for i, shape in enumerate(SHAPES.values())
    ]


SHAPES = {"kernel": (48, 96), "filters": (3, 3, 16, 40), "bias": (64,)}


def to_numpy(tensors):
    return [
        np.asarray(ops.convert_to_numpy(x)).astype("float64") for x in tensors
    ]


def apply(optimizer, variables, gradients):
    return stepper(optimizer, variables)(gradients)


def stepper(optimizer, variables):
    """Return a function of the gradients, compiled on JAX to save time."""
    optimizer.build(variables)
    if BACKEND != "jax":

        def run(gradients):
            gradients = [
                ops.convert_to_tensor(g, v.dtype)
                for g, v in zip(gradients, variables, strict=True)
            ]
            optimizer.apply(gradients, variables)
            return to_numpy(variables)

        return run

    import jax

    step_fn = jax.jit(optimizer.stateless_apply)
    tensors = [*variables, *optimizer.variables]

    def run(gradients):
        gradients = [
            ops.convert_to_tensor(g, v.dtype)
            for g, v in zip(gradients, variables, strict=True)
        ]
        values, state = step_fn(
            [v.value for v in optimizer.variables],
            gradients,
            [v.value for v in variables],
        )
        for tensor, value in zip(tensors, [*values, *state], strict=True):
            tensor.assign(value)
        return to_numpy(variables)

    return run


def compiled(fn, **options):
    """Compile on JAX, where each operation alone takes long to compile."""
    fn = functools.partial(fn, **options)
    if BACKEND == "jax":
        import jax

        return jax.jit(fn)
    return fn


def state_of(optimizer):
    """Return the variables of the optimizer less iterations, learning rate."""
    known = {id(optimizer._iterations), id(optimizer._learning_rate)}
    return [v for v in optimizer.variables if id(v) not in known]


def check_equal(actual, expected):
    for a, b in zip(to_numpy(actual), to_numpy(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def check_close(actual, expected, tolerance=1e-5):
    for a, b in zip(to_numpy(actual), to_numpy(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def bytes_of(shape, name="kernel", **options):
    """Bytes of state of one tensor."""
    optimizer = LDAdam(**options)
    optimizer.build([keras.Variable(ops.zeros(shape), name=name)])
    assert {v.dtype for v in state_of(optimizer)} <= STATE_DTYPES
    none = LDAdam()
    none.build([])
    return optimizer_state_bytes(optimizer) - optimizer_state_bytes(none)


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


# The step


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
    expected_fn = compiled(ld_adam_step, rounding="nearest", **options)
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


def test_seeds_differ_by_tensor():
    variables = [make_variables()[0], make_variables()[0]]
    optimizer, gradient = LDAdam(), make_gradients(0)[0]
    apply(optimizer, variables, [gradient, gradient])
    first, second = (optimizer.variables[index] for index in (5, 11))
    assert first.name.endswith("codes") and second.name.endswith("codes")
    assert (to_numpy([first])[0] != to_numpy([second])[0]).any()


def test_state_does_not_depend_on_the_dtype_of_the_variable():
    layouts = []
    for dtype in ("float32", "bfloat16"):
        optimizer = LDAdam()
        optimizer.build(make_variables(dtype))
        layouts.append([(v.shape, v.dtype) for v in state_of(optimizer)])
    assert layouts[0] == layouts[1]


# Faults


@pytest.mark.parametrize("everywhere", [False, True])
def test_faulty_gradients_never_enter_the_state(everywhere):
    variables = [make_variables(), make_variables()]
    optimizers = [LDAdam(), LDAdam()]
    steppers = [stepper(*pair) for pair in zip(optimizers, variables)]
    for step in range(4):
        faulty, clean = make_gradients(step), make_gradients(step)
        if step == 1:
            # one tensor only: the other ones go on
            places = slice(None) if everywhere else slice(None, None, 7)
            faulty[0][places], clean[0][places] = np.nan, 0.0
            faulty[0][:1], clean[0][:1] = np.inf, 0.0
        check_equal(steppers[0](faulty), steppers[1](clean))
        for x in to_numpy([*optimizers[0].variables, *variables[0]]):
            assert np.isfinite(x).all()
    check_equal(state_of(optimizers[0]), state_of(optimizers[1]))


def test_zero_gradients_move_nothing():
    variables = make_variables()
    step_fn = stepper(LDAdam(), variables)
    for _ in range(3):
        step_fn(make_gradients(0, scale=0.0))
    check_equal(variables, make_variables())


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e-10, 1e10, 9e17, 3e38])
def test_huge_and_tiny_gradients(scale):
    variables, optimizer = make_variables(), LDAdam()
    step_fn = stepper(optimizer, variables)
    for step in range(3):
        with np.errstate(over="ignore"):
            step_fn(make_gradients(step, scale=np.float32(scale)))
    for x in to_numpy([*optimizer.variables, *variables]):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 5), (5, 0)])
@pytest.mark.parametrize("min_size", [0, 4096])
def test_tensors_of_one_element_or_none(shape, min_size):
    variable = keras.Variable(np.ones(shape, "float32"))
    step_fn = stepper(LDAdam(0.1, min_size=min_size), [variable])
    for _ in range(2):
        value = step_fn([np.ones(shape, "float32")])[0]
    assert value.shape == shape and (np.abs(value) < 1).all()


def test_tensor_without_gradient_keeps_its_state():
    variables, optimizer = make_variables(), LDAdam(0.1)
    apply(optimizer, variables, make_gradients(0))
    before, state = to_numpy(variables), to_numpy(state_of(optimizer))
    gradients = [None, *map(ops.convert_to_tensor, make_gradients(1)[1:])]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(gradients, variables)
    after = to_numpy(variables)
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any() and (before[2] != after[2]).any()
    slots = 6
    check_equal(state_of(optimizer)[:slots], state[:slots])


def test_bfloat16_variables():
    variables = make_variables("bfloat16")
    step_fn, before = stepper(LDAdam(0.1), variables), to_numpy(variables)
    for step in range(3):
        after = step_fn(make_gradients(step))
    for variable, x, y in zip(variables, after, before, strict=True):
        assert variable.dtype == "bfloat16"
        assert np.isfinite(x).all() and (x != y).any()


# What every Keras optimizer can do


def test_learning_rate_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.1, 0.01, 0.5]
    )
    actual, expected = make_variables(), make_variables()
    manual = LDAdam(0.1)
    scheduled_step = stepper(LDAdam(schedule), actual)
    manual_step = stepper(manual, expected)
    for step, learning_rate in enumerate([0.1, 0.01, 0.5]):
        manual.learning_rate = learning_rate
        scheduled_step(make_gradients(step))
        manual_step(make_gradients(step))
        check_close(actual, expected, 1e-6)


def test_weight_decay_and_what_is_excluded_from_it():
    decayed, plain = LDAdam(0.1, weight_decay=0.2), LDAdam(0.1)
    decayed.exclude_from_weight_decay(var_names=["bias"])
    actual, reference = make_variables(), make_variables()
    decayed_step = stepper(decayed, actual)
    plain_step = stepper(plain, reference)
    expected = to_numpy(actual)
    for step in range(3):
        before = to_numpy(reference)
        after = plain_step(make_gradients(step))
        for i, decay in enumerate([0.02, 0.02, 0.0]):
            expected[i] = expected[i] * (1 - decay) + after[i] - before[i]
        decayed_step(make_gradients(step))
        check_close(actual, expected)


def test_clipnorm():
    actual, expected = make_variables(), make_variables()
    options = {"error_feedback": "full"}
    clipped_step = stepper(LDAdam(0.1, clipnorm=1.0, **options), actual)
    plain_step = stepper(LDAdam(0.1, **options), expected)
    for step in range(3):
        gradients = make_gradients(step)
        clipped_step(gradients)
        plain_step([g / np.linalg.norm(g) for g in gradients])
        check_close(actual, expected, 1e-3)


def test_exponential_average():
    optimizer = LDAdam(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    )
    variables, reference = make_variables(), make_variables()
    ema_step = stepper(optimizer, variables)
    plain_step = stepper(LDAdam(0.1), reference)
    averages = None
    for step in range(3):
        ema_step(make_gradients(step))
        values = plain_step(make_gradients(step))
        averages = [
            # Keras starts the average at 0 and its momentum at 0
            x if step == 0 else 0.5 * average + 0.5 * x
            for x, average in zip(values, averages or values, strict=True)
        ]
    check_close(variables, averages)


def test_gradient_accumulation():
    actual, expected = make_variables(), make_variables()
    accumulate = stepper(LDAdam(0.1, gradient_accumulation_steps=2), actual)
    plain_step = stepper(LDAdam(0.1), expected)
    for step in range(3):
        # few digits, so that their mean is exact
        halves = [
            [np.round(4 * g) / 4 for g in make_gradients(2 * step + half)]
            for half in range(2)
        ]
        before = to_numpy(actual)
        check_equal(accumulate(halves[0]), before)
        accumulate(halves[1])
        plain_step([(a + b) / 2 for a, b in zip(*halves, strict=True)])
        check_close(actual, expected, 1e-4)


def test_loss_scale_optimizer():
    inner = LDAdam(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    actual, expected = make_variables(), make_variables()
    scaled_step = stepper(scaled, actual)
    plain_step = stepper(LDAdam(0.1), expected)
    for step in range(2):
        scaled_step(make_gradients(step, scale=1024.0))
        plain_step(make_gradients(step))
        check_close(actual, expected, 1e-4)
    state, values = to_numpy(inner.variables), to_numpy(actual)
    overflow = make_gradients(2)
    overflow[0][0, 0] = np.inf
    check_equal(scaled_step(overflow), values)
    check_equal(inner.variables, state)


# Under fit


@pytest.mark.parametrize(
    "mode",
    ["eager", "graph", "xla"] if BACKEND == "tensorflow" else ["auto"],
)
def test_fit(mode, monkeypatch):
    calls = []
    update_step = LDAdam.update_step

    def counted(self, *args):
        calls.append(args)
        return update_step(self, *args)

    monkeypatch.setattr(LDAdam, "update_step", counted)
    model = make_model()
    jit_compile = {"xla": True, "auto": "auto"}.get(mode, False)
    model.compile(
        LDAdam(1e-2),
        "mse",
        jit_compile=jit_compile,
        run_eagerly=mode == "eager",
    )
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    traced = len(calls)
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    if BACKEND != "torch" and mode != "eager":
        assert len(calls) == traced


def test_fit_in_mixed_bfloat16():
    model = make_model(dtype="mixed_bfloat16")
    model.compile(LDAdam(1e-2), "mse")
    x, y = make_data(256)
    losses = model.fit(x, y, epochs=5, batch_size=64, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


@pytest.mark.parametrize(
    "options",
    [{}, {"error_feedback": "full"}, {"error_feedback": "off"}],
)
def test_saved_and_restored_training_goes_on_exactly(tmp_path, options):
    def fit(model, epochs):
        model.fit(x, y, 16, epochs=epochs, shuffle=False, verbose=0)

    x, y = make_data(16)  # one step an epoch
    straight = make_model()
    straight.compile(LDAdam(1e-2, **options), "mse")
    fit(straight, 10)
    model = make_model()
    model.compile(LDAdam(1e-2, **options), "mse")
    fit(model, 5)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is LDAdam
    assert restored.optimizer.get_config() == model.optimizer.get_config()
    check_equal(restored.optimizer.variables, model.optimizer.variables)
    fit(restored, 5)
    check_equal(restored.variables, straight.variables)
    check_equal(restored.optimizer.variables, straight.optimizer.variables)


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


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients"
)
@pytest.mark.parametrize("options", [{}, {"exclude_embeddings": False}])
def test_sparse_gradient_of_an_embedding(options):
    import tensorflow as tf

    table = normal(64, 64)
    sparse, dense = (keras.Variable(table, name="embeddings") for _ in range(2))
    optimizers = [LDAdam(0.1, **options), LDAdam(0.1, **options)]
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


# Configuration


def test_config_round_trip():
    config = {
        "rank": 8,
        "beta_1": 0.8,
        "beta_2": 0.999,
        "rho": 0.5,
        "epsilon": 1e-5,
        "error_feedback": "full",
        "bucket_size": 32,
        "rounding": "nearest",
        "min_size": 100,
        "exclude_layers": ["output"],
        "exclude_embeddings": False,
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
        optimizer = LDAdam(learning_rate, **config)
        actual = optimizer.get_config()
        assert config.items() <= actual.items()
        restored = LDAdam.from_config({**actual})
        assert restored.get_config() == actual
        serialized = keras.optimizers.serialize(optimizer)
        restored = keras.optimizers.deserialize(serialized)
        assert type(restored) is LDAdam
        assert restored.get_config() == actual


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta_1": 1.0}, r"`beta_1` must be in \[0, 1\).*beta_1=1.0"),
        ({"beta_2": -0.1}, r"`beta_2` must be in \[0, 1\).*beta_2=-0.1"),
        ({"rho": 1.0}, r"`rho` must be in \[0, 1\).*rho=1.0"),
        ({"epsilon": 0.0}, "`epsilon` must be positive.*epsilon=0.0"),
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
