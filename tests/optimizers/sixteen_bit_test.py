"""Optimizers of Keras on 16-bit weights, as in float32."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.optimizers import SixteenBit
from keras_efficient.optimizers import sixteen_bit as module
from keras_efficient.optimizers.float32_view import Float32View
from tests.optimizers.table import BACKEND
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

Adam, AdamW = keras.optimizers.Adam, keras.optimizers.AdamW
Lion, Muon, SGD = (
    getattr(keras.optimizers, n) for n in ("Lion", "Muon", "SGD")
)
RATE = 2e-5
SHAPES = {"kernel": (24, 48), "bias": (64,)}
# Each with an option of Keras that reads or writes weights.
OPTIMIZERS = {
    "Adam": lambda: Adam(RATE),
    "AdamW": lambda: AdamW(RATE, weight_decay=0.5),
    "Muon": lambda: Muon(RATE),
    "Lion": lambda: Lion(RATE, use_ema=True, ema_overwrite_frequency=4),
    "SGD": lambda: SGD(2e-4, momentum=0.9, clipnorm=1.0),
    "accumulated": lambda: Adam(
        RATE, 0.8, gradient_accumulation_steps=2, global_clipnorm=1.0
    ),
    "scaled": lambda: AdamW(RATE, loss_scale_factor=4.0),
}


def starts():
    """Numbers that 16 bits hold."""
    for i, shape in enumerate(SHAPES.values()):
        yield np.round(normal(*shape, seed=i) * 64) / 1024


def train(optimizer, dtype, steps=6):
    """Return how far weights went, with what they do not show of it."""
    variables = [
        keras.Variable(value, dtype=dtype, name=name)
        for name, value in zip(SHAPES, starts())
    ]
    run = stepper(optimizer, variables)
    for step in range(steps):
        run([normal(*s, seed=[step, 7]) + 0.3 for s in SHAPES.values()])
    ours = getattr(optimizer, "inner_optimizer", optimizer)
    ours = optimizer if isinstance(optimizer, SixteenBit) else ours
    if isinstance(ours, SixteenBit):
        values = [ours._weights.read(i, v) for i, v in enumerate(variables)]
    else:
        values = variables
    pairs = zip(to_numpy(values), starts())
    return np.concatenate([(x - start).ravel() for x, start in pairs])


def check_moved_alike(actual, expected):
    assert np.corrcoef(actual, expected)[0, 1] > 0.99
    ratio = np.abs(actual).mean() / np.abs(expected).mean()
    assert 0.98 < ratio < 1.02


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_move_as_in_float32(name):
    dtype = "float16" if name in ("Adam", "scaled") else "bfloat16"
    make = OPTIMIZERS[name]
    actual = train(SixteenBit(make()), dtype)
    check_moved_alike(actual, train(make(), "float32"))


def test_without_it_nothing_moves():
    """The control: should Keras mend this, the docstring is to change."""
    moved = train(Adam(RATE), "bfloat16")
    assert not moved.any()
    moved = train(SixteenBit(Adam(RATE), "nearest"), "bfloat16")
    assert np.abs(moved).mean() < 0.5 * RATE


def test_random_rounding_is_right_on_average():
    expected = train(Adam(RATE), "float32")
    actual = train(SixteenBit(Adam(RATE), "stochastic"), "bfloat16")
    assert abs(actual.mean() / expected.mean() - 1) < 0.2


def test_loss_scale_optimizer_goes_around_it():
    scaled = keras.optimizers.LossScaleOptimizer(
        SixteenBit(Adam(RATE)), initial_scale=1.0
    )
    check_moved_alike(train(scaled, "float16"), train(Adam(RATE), "float32"))


def build(optimizer, dtype="bfloat16"):
    variables = [
        keras.Variable(value, dtype=dtype, name=name)
        for name, value in zip(SHAPES, starts())
    ]
    optimizer.build(variables)
    return variables


def test_state_is_float32_and_a_byte_a_weight():
    optimizer = SixteenBit(Adam(RATE, use_ema=True))
    build(optimizer)
    kinds = {}
    for v in optimizer.variables:
        if v.shape == (24, 48):
            kinds[v.dtype] = kinds.get(v.dtype, 0) + 1
    assert kinds == {"int8": 1, "float32": 3}
    assert all("correction" in v.path for v in optimizer._weights.corrections)
    for dtype, mode in (("bfloat16", "stochastic"), ("float32", "compensated")):
        optimizer = SixteenBit(Adam(RATE), mode)
        build(optimizer, dtype)
        assert "int8" not in {v.dtype for v in optimizer.variables}


def test_excluded_from_weight_decay_by_variable_and_by_name():
    for exclude in ({"var_names": ["bias"]}, None):
        optimizer = SixteenBit(AdamW(0.5, weight_decay=0.5))
        variables = [
            keras.Variable(np.ones(shape), dtype="bfloat16", name=name)
            for name, shape in SHAPES.items()
        ]
        exclude = exclude or {"var_list": variables[1:]}
        optimizer.exclude_from_weight_decay(**exclude)
        optimizer.build(variables)
        zeros = [ops.zeros(v.shape, "bfloat16") for v in variables]
        optimizer.apply(zeros, variables)
        kernel, bias = to_numpy(variables)
        assert (kernel == 0.75).all() and (bias == 1).all()


def test_some_views_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "batches", lambda rows: ([row] for row in rows))
    seen = []

    class Watched(SGD):
        def update_step(self, gradient, variable, learning_rate):
            views = optimizer._views.values()
            seen.append(sum(view.tensor is not None for view in views))
            super().update_step(gradient, variable, learning_rate)

    optimizer = SixteenBit(Watched(0.1))
    variables = build(optimizer)
    optimizer.apply([ops.ones(v.shape, v.dtype) for v in variables])
    assert seen == [1, 1]
    assert all(view.tensor is None for view in optimizer._views.values())


def test_a_step_that_fails_changes_nothing():
    class Failing(SGD):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)
            raise ArithmeticError

    optimizer = SixteenBit(Failing(0.1))
    variables = build(optimizer)
    before = to_numpy(variables)
    with pytest.raises(ArithmeticError):
        optimizer.apply([ops.ones(v.shape, v.dtype) for v in variables])
    check_equal(variables, before)
    assert all(view.tensor is None for view in optimizer._views.values())


def test_constraints_see_float32():
    variable = keras.Variable(np.full((8, 4), 0.3), dtype="bfloat16")
    dtypes = []

    def constraint(w):
        dtypes.append(keras.backend.standardize_dtype(w.dtype))
        return ops.maximum(w, 0.25)

    variable.constraint = constraint
    SixteenBit(SGD(1.0)).apply([ops.ones((8, 4), "bfloat16")], [variable])
    assert dtypes == ["float32"] and (to_numpy([variable])[0] == 0.25).all()


# Training


def make_model(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, "relu", dtype="bfloat16"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", **options)
    return model


DATA = normal(64, 16), normal(64, 16)[:, :1]
MODES = {
    "tensorflow": [{"run_eagerly": True}, {"jit_compile": True}, {}],
}.get(BACKEND, [{}])


def everything(model):
    return to_numpy([*model.variables, *model.optimizer.variables])


@pytest.mark.parametrize("options", MODES, ids=str)
def test_fit_saved_goes_on_bit_for_bit(options, tmp_path, monkeypatch):
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 100)
    model = make_model(SixteenBit(AdamW(schedule)), **options)
    losses = model.fit(*DATA, 16, 3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    with monkeypatch.context() as patch:
        # Keras compiles no model whose `compile` is not its own.
        if "compile" in vars(keras.Model):
            patch.delattr(keras.Model, "compile")
        again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer.inner_optimizer, AdamW)
    check_equal(everything(again), everything(model))
    corrections = to_numpy(again.optimizer._weights.corrections[:1])
    assert corrections[0].any()
    for one in (model, again):
        keras.utils.set_random_seed(1)
        one.fit(*DATA, 16, 1, shuffle=False, verbose=0)
    check_equal(everything(again), everything(model))


def test_options_of_the_inner_optimizer_are_its_own():
    optimizer = SixteenBit("adam")
    assert isinstance(optimizer.inner_optimizer, Adam)
    optimizer.learning_rate = 0.25
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25
    optimizer = SixteenBit(SGD(0.5, loss_scale_factor=8.0), "stochastic")
    assert optimizer.scale_loss(1.0) == 8.0
    config = optimizer.get_config()
    again = SixteenBit.from_config(config)
    assert again.get_config() == config
    assert again.inner_optimizer.loss_scale_factor == 8.0
    scaled = keras.optimizers.LossScaleOptimizer(again)
    assert scaled.inner_optimizer.inner_optimizer.loss_scale_factor is None


def test_wrappers_are_refused():
    for wrapper in (
        keras.optimizers.LossScaleOptimizer(Adam()),
        keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(Adam())),
        SixteenBit(Adam()),
    ):
        with pytest.raises(ValueError, match="not a wrapper.*Received"):
            SixteenBit(wrapper)
    with pytest.raises(ValueError, match="`weight_rounding` must be one of"):
        SixteenBit(Adam(), "exact")


def test_inside_of_a_multi_optimizer():
    by_name = keras.optimizers.OptimizerMap(
        SixteenBit(Adam(RATE)), {"bias": SixteenBit(SGD(1e-3))}
    )
    optimizer = keras.optimizers.MultiOptimizer(by_name)
    variables = build(optimizer)
    optimizer.apply([ops.ones(v.shape, v.dtype) for v in variables])
    adam, sgd = optimizer.optimizers[1], optimizer.optimizers[0]
    moved = [
        ours._weights.read(0, v) for ours, v in zip((adam, sgd), variables)
    ]
    for x, start, rate in zip(to_numpy(moved), starts(), (RATE, 1e-3)):
        assert abs((start - x).mean() / rate - 1) < 0.1


def test_views_are_variables_of_float32():
    optimizer = SixteenBit(SGD(0.1))
    variables = build(optimizer)
    view = optimizer._views[optimizer._var_key(variables[0])]
    assert isinstance(view, Float32View)
    assert (view.dtype, tuple(view.shape)) == ("float32", (24, 48))
    view.assign(ops.full((24, 48), 0.1))
    (value,) = to_numpy([view.read()])
    assert np.abs(value / np.float32(0.1) - 1).max() < 2**-16
