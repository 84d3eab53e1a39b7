"""Residual layers that exist, as one reversible layer."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.models import sequence_from_modules
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import LAST
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors


def block(residual=True):
    x = keras.Input((6,))
    y = layers.Dropout(0.3)(layers.Dense(6, "tanh")(x))
    return keras.Model(x, layers.Add()([x, y]) if residual else y)


def model(coupling, reversible=True, depth=3, residual=True):
    keras.utils.set_random_seed(7)
    modules = [block(residual) for _ in range(depth)]
    x = keras.Input((6,))
    stack = sequence_from_modules(
        modules, coupling, residual=residual, reversible=reversible
    )
    return keras.Model(x, stack(x)), modules


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("coupling", ["momentum", "additive"])
def test_computes_its_equations(coupling, residual):
    network, modules = model(coupling, residual=residual)
    x = first = batch(4, 6)
    m, v, other = 0.1, np.zeros((4, 6)), x
    for module in modules:
        (y,) = to_numpy([module(x)])
        f = y - x * residual
        if coupling == "momentum":
            v = m * v + (1 - m) * f
            x = x + v
        else:
            x, other = other + f, x
    expected = (
        x + m / (1 - m) * v if coupling == "momentum" else (x + other) / 2
    )
    np.testing.assert_allclose(*to_numpy([network(first)]), expected, atol=1e-5)


@pytest.mark.parametrize("coupling", ["momentum", "additive"])
def test_gradients_equal_those_of_the_plain_twin(coupling):
    x = batch(4, 6)
    found, expected = (
        gradients(model(coupling, r)[0], [x], LAST) for r in (True, False)
    )
    for ours, theirs in zip(found, expected):
        assert max(relative_errors(ours, theirs)) < 1e-4
    assert all(np.any(d != 0) for d in expected[2])


def test_saving(tmp_path):
    network, _ = model("momentum")
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = batch(4, 6)
    np.testing.assert_allclose(*to_numpy([again(x), network(x)]), atol=1e-6)


@once
def test_bytes_kept_do_not_grow_with_depth():
    x = batch(256, 6)
    kept = {
        (r, n): saved_activation_bytes(model("additive", r, n)[0], x)
        for r in (True, False)
        for n in (2, 6)
    }
    plain = kept[False, 6] - kept[False, 2]
    assert plain > 3e4
    assert kept[True, 6] - kept[True, 2] < 0.05 * plain


@once
def test_modules_of_pytorch():
    import torch

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + torch.tanh(self.linear(x)), "something else"

    results = []
    for reversible in (True, False):
        torch.manual_seed(0)
        modules = [Residual() for _ in range(3)]
        stack = sequence_from_modules(modules, reversible=reversible)
        stack(batch(4, 6))
        weights = [p for module in modules for p in module.parameters()]
        x = torch.tensor(batch(4, 6), requires_grad=True)
        (stack(x, training=True) ** 2).sum().backward()
        results.append([x.grad, *[p.grad for p in weights]])
    ours, theirs = ([d.numpy() for d in found] for found in results)
    assert max(relative_errors(ours, theirs)) < 1e-5
    assert all(np.any(d != 0) for d in theirs)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`coupling` must be one of"):
        sequence_from_modules([block()], "affine")
    with pytest.raises(ValueError, match="and 0 modules"):
        sequence_from_modules([])
    with pytest.raises(TypeError, match="must be Keras layers or"):
        sequence_from_modules([lambda x: x])
