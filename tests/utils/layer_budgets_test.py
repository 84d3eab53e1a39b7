"""Bytes of an optimizer's state, divided among tensors."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.optimizers import LDAdam
from keras_efficient.optimizers import MicroAdam
from keras_efficient.utils import layer_budgets
from keras_efficient.utils.layer_budgets import allocate
from keras_efficient.utils.layer_budgets import mean_gradients
from tests.marks import once
from tests.optimizers.table import check_equal
from tests.optimizers.table import state_of
from tests.twins import batch


def brute_force(errors, sizes, budget):
    """The least error of all combinations."""
    return min(
        sum(e[i] for e, i in zip(errors, places))
        for places in itertools.product(*map(range, map(len, errors)))
        if sum(s[i] for s, i in zip(sizes, places)) <= budget
    )


@once
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_best_of_all_combinations(seed):
    """Errors need not be convex, sizes not alike."""
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.random(4))[::-1] for _ in range(4)]
    sizes = [np.sort(rng.choice(40, 4, False)) + 1 for _ in range(4)]
    budget = sum(s[0] for s in sizes) + rng.integers(0, 60)
    places = allocate(errors, sizes, budget)
    assert sum(s[i] for s, i in zip(sizes, places)) <= budget
    error = sum(e[i] for e, i in zip(errors, places))
    np.testing.assert_allclose(error, brute_force(errors, sizes, budget))
    with pytest.raises(ValueError, match="must be enough for `floor`"):
        allocate(errors, sizes, sum(s[0] for s in sizes) - 1)


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(128, "relu", name="first"),
            layers.Dropout(0.2),
            layers.BatchNormalization(),
            layers.Dense(64, name="second"),
        ],
        name="network",
    )
    model.compile("sgd", "mse")
    return model


def bytes_of(optimizer):
    return sum(
        np.prod(v.shape) * {"bfloat16": 2, "int32": 4}.get(v.dtype, 0)
        or np.prod(v.shape) * np.dtype(v.dtype).itemsize
        for v in state_of(optimizer)
    )


@pytest.mark.parametrize("kind", ["MicroAdam", "LDAdam"])
def test_budgets_are_kept_and_trained_with(kind, tmp_path, monkeypatch):
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    model = network()
    x, y = batch(32, 64), batch(32, 64)
    y[:, 8:] = 0.0  # gradients of few large rows
    before = model.get_weights()
    budget = layer_budgets(model, [(x, y)] * 2, kind, bytes_per_parameter=2.0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(budget) == 2
    assert len(set(budget.values())) == 2
    if kind == "MicroAdam":
        optimizer = MicroAdam(1e-3, density=budget)
    else:
        optimizer = LDAdam(1e-3, rank=budget)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    optimizer.build(kernels)
    assert 1.8 * 2**14 < bytes_of(optimizer) <= 2.0 * 2**14 + 80
    other = type(optimizer).from_config(optimizer.get_config())
    model.compile(other, "mse")
    losses = model.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check_equal(loaded.optimizer.variables, model.optimizer.variables)


@once
def test_mean_gradients_are_those_of_training():
    """With plain SGD at rate 1 they are what a step moves."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = batch(8, 4), batch(8, 3)
    variables, gradients = mean_gradients(model, [(x, y), (x, y)])
    before = model.get_weights()
    model.train_on_batch(x, y)
    for a, b, g in zip(before, model.get_weights(), gradients):
        np.testing.assert_allclose(a - b, g, atol=1e-6)
    for arguments, match in (
        ((model, [(x, y)], "Adam"), "`optimizer` must be"),
        ((model, []), "`batches` not empty"),
        ((model, [(x, y)]), "must have tensors that"),
    ):
        with pytest.raises(ValueError, match=match):
            layer_budgets(*arguments)
