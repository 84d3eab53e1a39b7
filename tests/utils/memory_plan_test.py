import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import chunk_loss
from keras_efficient import release_gradients
from keras_efficient.conversion.least_work import Cost
from keras_efficient.conversion.step_bytes import Fixed
from keras_efficient.optimizers import Adam8bit
from keras_efficient.utils import MemoryPlan
from keras_efficient.utils import memory_plan
from keras_efficient.utils.measured_step import Change
from keras_efficient.utils.measured_step import MeasuredStep
from keras_efficient.utils.memory_plan import make_plan
from keras_efficient.utils.step_measurement import measure_step
from tests.marks import once
from tests.twins import batch

MB = 10**6


def small():
    x = inputs = keras.Input((16, 16, 4))
    for _ in range(6):
        y = layers.Conv2D(4, 3, padding="same")(x)
        x = layers.Add()([x, layers.ReLU()(layers.LayerNormalization()(y))])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def step(activations=100 * MB, state=80 * MB, logits=0, mixes=False):
    """A step of ten equal segments, and 40 MB of parameters."""
    part = activations // 10
    names = {"as it is": state, "Adam8bit": state // 4}
    names |= {"MicroAdam": state // 8, "SinkGD": 0}
    return MeasuredStep(
        {k: Fixed(40 * MB, 40 * MB, n, 40 * MB) for k, n in names.items()},
        [],
        MB,
        40 * MB + activations + logits,
        40 * MB + activations * 2 // 10 + logits,
        [Cost(part, part // 10, 1.0) for _ in range(10)],
        logits,
        mixes,
    )


def plan_for(measured, budget, **arguments):
    model = small()
    model.compile("adam", "mse")
    return make_plan(model, 16, measured, budget, **arguments)


@once
def test_the_plan_is_the_cheapest_that_fits():
    measured = step()
    plain = measured.peak(Change())
    assert plain == (40 + 80 + 1 + 140) * MB
    assert plan_for(measured, plain).levers == []
    # A little of the state is enough, at the lowest price.
    assert plan_for(measured, plain - 10 * MB).levers == ["optimizer"]
    only = plan_for(measured, plain - 10 * MB, allow=("recompute",))
    assert only.levers == ["recompute"] and 0 < only.extra_time < 0.1
    assert only.lines == [
        "keras_efficient.recompute(model, inputs=16, budget='251.0MB')"
    ]
    both = plan_for(measured, 120 * MB, allow=("recompute", "optimizer"))
    assert both.fits and both.levers == ["optimizer", "recompute"]
    assert plan_for(step(mixes=True), 170 * MB).levers[-1] == "recompute"
    assert "chunk_loss" in plan_for(step(logits=200 * MB), 270 * MB).levers
    hopeless = plan_for(measured, 30 * MB)
    assert not hopeless.fits and "alone take" in str(hopeless)
    lines = plan_for(step(state=0), 110 * MB, allow=("bfloat16",)).lines
    assert "set_dtype_policy" in lines[0]


@once
def test_micro_batches_add_up_gradients_besides():
    measured = step()
    change = Change(micro_batches=4)
    # Parameters, state, batch; two times the gradients; a quarter of the rest.
    assert measured.peak(change) == (40 + 80 + 1 + 80 + 25) * MB


def test_a_plan_is_applied_in_place_and_keeps_the_budget():
    model, x = small(), batch(64, 16, 16, 4)
    model.compile("adam", "mse", metrics=["mae"])
    # Without what has to be compiled, the peak is that of the measurement.
    before = measure_step(model, keras.ops.convert_to_tensor(x))
    budget = 0.6 * before.peak(Change())
    plan = memory_plan(
        model, x, f"{budget} B", allow=("recompute", "optimizer"), verbose=0
    )
    assert isinstance(plan, MemoryPlan) and plan.fits
    assert plan.peak <= budget < plan.peak_as_it_is
    assert plan.levers[-1] == "recompute"
    assert plan.apply() is model
    after = measure_step(model, keras.ops.convert_to_tensor(x))
    assert after.peak(Change()) <= budget
    model.fit(x, np.zeros((64, 3)), verbose=0)
    if "optimizer" in plan.levers:
        assert isinstance(model.optimizer, Adam8bit)
        assert len(model.evaluate(x, np.zeros((64, 3)), verbose=0)) == 2


def language_model(dtype="bfloat16"):
    tokens = keras.Input((32,), dtype="int32")
    x = layers.Embedding(800, 16, dtype=dtype)(tokens)
    for _ in range(2):
        x = layers.Dense(16, "gelu", use_bias=False, dtype=dtype)(x)
    x = layers.Dense(800, use_bias=False, dtype=dtype)(x)
    return keras.Model(tokens, x)


def test_parts_of_a_step_with_the_levers_that_a_model_has():
    model, tokens = language_model(), np.ones((4, 32), "int32")
    entries, largest = 2 * 800 * 16 + 2 * 16 * 16, 800 * 16
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    for rate in (0.1, 0.2):
        model.compile(Adam8bit(rate, min_size=64), loss)
        plan = memory_plan(model, tokens, "1GiB", allow=(), verbose=0)
        assert plan.levers == [] and plan.fits
        assert sum(plan.parts.values()) == plan.peak == plan.peak_as_it_is
        found.append(plan.parts)
        release_gradients(chunk_loss(model, 16))
    for parts in found:
        assert parts["weights"] == 2 * entries
        assert parts["correction"] == entries
        assert 2 <= parts["optimizer"] / entries < 2.3
    plain, efficient = found
    # Logits of all 128 tokens and more for their loss; then of 16.
    assert plain["logits"] > 1.5 * 128 * 800 * 2
    assert efficient["logits"] < plain["logits"] / 2
    assert plain["gradients"] == 2 * entries
    if keras.config.backend() == "torch":
        assert efficient["gradients"] == 2 * largest
    kept = make_plan(model, 4, step(state=0), 110 * MB, allow=("bfloat16",))
    assert kept.levers == []  # it has 16 bits already


@once
def test_errors_say_what_to_do():
    model = small()
    with pytest.raises(ValueError, match="may have.*Received.*prayer"):
        memory_plan(model, 4, "1GiB", allow=("prayer",))
    with pytest.raises(ValueError, match="positive number of GiB.*'much'"):
        memory_plan(model, 4, "much")
    with pytest.raises(ValueError, match="is not built"):
        memory_plan(keras.Sequential([layers.Dense(1)]), 2, 1)
