"""What old inputs give stays as it is, whatever is learned."""

import keras
import numpy as np
import pytest

from keras_efficient.optimizers import GradientProjection
from keras_efficient.utils import input_bases
from tests.gradients import LAST
from tests.gradients import MODES
from tests.gradients import fit_mode
from tests.marks import once

RNG = np.random.default_rng(0)
# Old inputs lie in a plane; new ones anywhere.
OLD = (RNG.normal(size=(20, 2)) @ RNG.normal(size=(2, 8))).astype("float32")
NEW = RNG.normal(size=(32, 8)).astype("float32")
GOALS = RNG.normal(size=(32, 3)).astype("float32")
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "accumulated": lambda: keras.optimizers.Adam(
        0.02, gradient_accumulation_steps=2
    ),
}


def network():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(12, "tanh"),
            keras.layers.Dense(3),
        ]
    )


def train(model, optimizer, mode=LAST, epochs=5):
    model.compile(optimizer, "mse", **fit_mode(mode))
    history = model.fit(NEW, GOALS, 8, epochs=epochs, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_outputs_stay_and_new_ones_are_learned(name, mode):
    if mode != LAST and name != "adamw":
        pytest.skip("one optimizer is enough for the other modes")
    model = network()
    before = model.predict(OLD, verbose=0)
    # What comes out of tanh fills more dimensions than what went in.
    bases = input_bases(model, OLD, energy=1.0)
    optimizer = GradientProjection(OPTIMIZERS[name](), bases)
    losses = train(model, optimizer, mode)
    assert losses[-1] < losses[0]
    after = model.predict(OLD, verbose=0)
    np.testing.assert_allclose(after, before, atol=1e-5)
    free = network()
    free.set_weights(model.get_weights())
    train(free, OPTIMIZERS[name](), epochs=2)
    assert np.abs(free.predict(OLD, verbose=0) - before).max() > 1e-2


def test_old_outputs_stay_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")  # losses are scaled
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    before = [v.copy() for v in model.get_weights()]
    bases = input_bases(model, OLD, energy=1.0)
    losses = train(model, GradientProjection("adam", bases))
    assert losses[-1] < losses[0]
    moved = model.get_weights()[0] - before[0]
    assert np.abs(moved).max() > 1e-3
    basis = bases[model.layers[0].kernel.path]
    assert np.abs(basis.T @ moved).max() < 1e-5


@once
def test_without_the_second_projection_adam_forgets():
    """The trap that the step is projected for."""
    variable = keras.Variable(np.ones((2, 1), "float32"), name="kernel")
    basis = np.array([[0.6], [0.8]])
    optimizer = GradientProjection(
        keras.optimizers.Adam(0.1), {"kernel": basis}
    )
    optimizer.apply([keras.ops.convert_to_tensor([[3.0], [1.0]])], [variable])
    value = keras.ops.convert_to_numpy(variable)
    assert abs((basis.T @ (value - 1)).item()) < 1e-6
    assert np.abs(value - 1).max() > 0.05


@once
@pytest.mark.parametrize("padding, strides", [("same", 3), ("valid", 2)])
def test_convolutions(padding, strides):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, strides, padding),
            keras.layers.Flatten(),
        ]
    )
    old, new = RNG.normal(size=(2, 2, 6, 6, 2)).astype("float32")
    old[1] = 0
    bases = input_bases(model, old, energy=1.0)
    path = model.layers[0].kernel.path
    assert 0 < bases[path].shape[1] <= len(bases[path]) == 18
    before = model.predict(old, verbose=0)
    model.compile(GradientProjection("adam", bases), "mse")
    model.fit(new, 0 * model.predict(new, verbose=0), epochs=5, verbose=0)
    np.testing.assert_allclose(model.predict(old, verbose=0), before, atol=1e-5)


@once
def test_bases_are_the_fewest_that_reach_the_energy():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    path = model.layers[0].kernel.path
    _, s, v = np.linalg.svd(NEW, full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    count = int(np.argmax(share >= 0.8)) + 1
    bases = input_bases(model, NEW, energy=0.8, batch_size=5)
    assert bases[path].shape == (8, count)
    np.testing.assert_allclose(
        bases[path] @ bases[path].T, v[:count].T @ v[:count], atol=1e-5
    )
    both = input_bases(model, OLD, energy=0.999, bases=bases)
    kept = both[path] @ (both[path].T @ bases[path])
    np.testing.assert_allclose(kept, bases[path], atol=1e-5)
    assert count < both[path].shape[1] <= count + 2
    assert "call" not in vars(model.layers[0])
    held = model.layers[0].call  # as when the model is recomputed
    vars(model.layers[0])["call"] = held
    input_bases(model, OLD)
    assert vars(model.layers[0])["call"] is held


def test_a_run_goes_on_from_a_file(tmp_path, own_compile):
    model = network()
    bases = input_bases(model, OLD, energy=1.0)
    train(model, GradientProjection("adam", bases), epochs=1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, GradientProjection)
    for m in (model, again):
        m.fit(NEW, GOALS, 8, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@once
def test_bad_arguments_are_told():
    variable = keras.Variable(np.ones((4, 2), "float32"), name="kernel")
    eye = np.eye(4)[:, :2]
    with pytest.raises(ValueError, match="orthonormal"):
        GradientProjection("sgd", {"kernel": 2 * eye})
    with pytest.raises(ValueError, match="use_ema"):
        GradientProjection(keras.optimizers.SGD(use_ema=True), {})
    with pytest.raises(ValueError, match="wrapper"):
        GradientProjection(GradientProjection("sgd", {}), {})
    with pytest.raises(ValueError, match="fits 0"):
        GradientProjection("sgd", {"other": eye}).build([variable])
    with pytest.raises(ValueError, match="as many rows"):
        GradientProjection("sgd", {"kernel": eye[:3]}).build([variable])
    with pytest.raises(ValueError, match="energy"):
        input_bases(network(), OLD, energy=0)
    with pytest.raises(ValueError, match="none"):
        input_bases(keras.Sequential([keras.Input((8,))]), OLD)
    grouped = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.Conv2D(2, 3, groups=2)]
    )
    with pytest.raises(ValueError, match="groups"):
        input_bases(grouped, np.zeros((1, 4, 4, 2)))
