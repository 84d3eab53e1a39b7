"""Training goes on, with another optimizer of the same algorithm."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import optimizers
from keras_efficient.utils import convert_optimizer_state

SHAPES = ((80, 64), (7, 600), (64,))
PAIRS = {
    "Adam": (keras.optimizers.Adam, optimizers.Adam8bit),
    "AdamW": (keras.optimizers.AdamW, optimizers.AdamW8bit),
    "Lion": (keras.optimizers.Lion, optimizers.Lion8bit),
    "SGD": (keras.optimizers.SGD, optimizers.SGD8bit),
}


def make(cls, **options):
    if cls is keras.optimizers.SGD:
        options = {"momentum": 0.9, **options}
    return cls(learning_rate=0.01, **options)


def make_variables():
    return [keras.Variable(np.ones(x, "float32"), name="x") for x in SHAPES]


def train(optimizer, variables, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        gradients = [rng.normal(1, 1, x).astype("float32") for x in SHAPES]
        optimizer.apply(
            [ops.convert_to_tensor(g) for g in gradients], variables
        )


def to_numpy(tensors):
    return [np.array(ops.convert_to_numpy(x)) for x in tensors]


def moments(optimizer):
    """Return float32 moments of an optimizer of Keras, without its scalars."""
    return to_numpy(x for x in optimizer.variables if len(x.shape))


@pytest.mark.parametrize("name", PAIRS)
def test_there_and_back(name):
    theirs, ours = PAIRS[name]
    variables = make_variables()
    source = make(theirs)
    train(source, variables, range(5))
    source.learning_rate = 0.02
    target = convert_optimizer_state(source, ours(), variables)
    assert int(ops.convert_to_numpy(target.iterations)) == 5
    rate = float(ops.convert_to_numpy(target.learning_rate))
    assert rate == pytest.approx(0.02)
    back = convert_optimizer_state(target, make(theirs), variables)
    assert int(ops.convert_to_numpy(back.iterations)) == 5
    pairs = list(zip(moments(source), moments(back), strict=True))
    assert len(pairs) == len(SHAPES) * (2 if "Adam" in name else 1)
    for expected, actual in pairs:
        # One byte an entry; small tensors lose nothing.
        bound = 0.03 if expected.size > 4096 else 1e-6
        assert abs(actual - expected).max() <= bound * abs(expected).max()
    # From 8 bits nothing is lost.
    again = convert_optimizer_state(back, ours(), variables)
    for old, new in zip(moments(target), moments(again), strict=True):
        old, new = old.astype("float32"), new.astype("float32")
        assert np.isclose(old, new, 1e-6, 0).mean() > 0.99


@pytest.mark.parametrize("name", PAIRS)
def test_training_goes_on(name):
    """As it would have without the change, up to the rounding of moments."""
    theirs, ours = PAIRS[name]
    before, after = make_variables(), make_variables()
    plain, converted = make(theirs), make(theirs)
    train(plain, before, range(6))
    train(converted, after, range(6))
    options = {"weight_decay": plain.weight_decay}
    target = convert_optimizer_state(converted, ours(**options), after)
    start = to_numpy(before)
    train(plain, before, range(6, 9))
    train(target, after, range(6, 9))
    for x, y, z in zip(to_numpy(before), to_numpy(after), start, strict=True):
        moved = np.linalg.norm(x - z)
        # Lion moves by signs, of which some are at 0.
        assert np.linalg.norm(x - y) < (0.3 if name == "Lion" else 0.05) * moved


def test_wrappers_averages_and_accumulation():
    variables = make_variables()
    source = make(keras.optimizers.Adam, use_ema=True)
    source = keras.optimizers.LossScaleOptimizer(source)
    source.build(variables)
    average = source.inner_optimizer.variables[2]
    assert average.name.endswith("average")
    average.assign(ops.full(average.shape, 3.0))
    inner = make(
        optimizers.Adam8bit, use_ema=True, gradient_accumulation_steps=4
    )
    source.inner_optimizer.iterations.assign(5)
    target = keras.optimizers.LossScaleOptimizer(inner)
    assert convert_optimizer_state(source, target, variables) is target
    found = next(x for x in inner.variables if x.name.endswith("_average"))
    assert to_numpy([found])[0].mean() == 3
    assert int(ops.convert_to_numpy(inner.iterations)) == 5
    assert int(ops.convert_to_numpy(inner.variables[0])) == 20


def test_schedules():
    variables = make_variables()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    source = keras.optimizers.Adam(schedule)
    source.build(variables)
    target = convert_optimizer_state(source, optimizers.Adam8bit(), variables)
    config = target.get_config()["learning_rate"]
    assert config["class_name"] == "ExponentialDecay"
    back = keras.optimizers.Adam(0.3)
    back.build(variables)
    convert_optimizer_state(back, target, variables)
    assert isinstance(target.get_config()["learning_rate"], dict)


def test_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    x, y = np.ones((8, 64), "float32"), np.ones((8, 80), "float32")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(80)])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=3, verbose=0)
    model.save(tmp_path / "run.keras")
    model = keras.models.load_model(tmp_path / "run.keras")
    optimizer = convert_optimizer_state(
        model.optimizer, optimizers.Adam8bit(), model.trainable_variables
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, verbose=0)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4


@pytest.mark.parametrize(
    "source, target, message",
    [
        (
            keras.optimizers.Adam,
            optimizers.SGD8bit,
            "same algorithm.*Received: Adam and SGD8bit",
        ),
        (keras.optimizers.RMSprop, optimizers.Adam8bit, "RMSprop and Adam8bit"),
        (
            lambda: keras.optimizers.Adam(amsgrad=True),
            optimizers.Adam8bit,
            "`source` must.*without `amsgrad`",
        ),
        (
            optimizers.SGD8bit,
            keras.optimizers.SGD,
            "`target` must.*`SGD` with momentum",
        ),
    ],
)
def test_what_cannot_be_converted(source, target, message):
    variables = make_variables()
    source = source()
    source.build(variables)
    with pytest.raises(ValueError, match=message):
        convert_optimizer_state(source, target(), variables)


def test_a_source_without_state_or_of_other_variables():
    variables = make_variables()
    source, target = keras.optimizers.Adam(), optimizers.Adam8bit()
    with pytest.raises(ValueError, match="`source` has no state"):
        convert_optimizer_state(source, target, variables)
    source.build(variables[:2])
    with pytest.raises(ValueError, match="Each of `variables` must have a mom"):
        convert_optimizer_state(source, target, variables)
    assert not any(abs(x).sum() for x in moments(target))
