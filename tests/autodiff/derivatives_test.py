"""Derivatives other than the plain first one."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import to_numpy
from tests.twins import batch

BACKEND = keras.config.backend()
only = {
    name: pytest.mark.skipif(BACKEND != name, reason=f"Is about {name}.")
    for name in ("jax", "tensorflow", "torch")
}


def dense():
    return layers.Dense(4, "tanh")


def run(reversible=True, exact=False):
    blocks = [AdditiveCoupling(dense(), dense()) for _ in range(2)]
    run = ReversibleSequence(blocks, reversible, exact=exact)
    run.build((None, 8))
    return run


def recompute():
    layer = Recompute([layers.Dense(8, "tanh"), layers.Dense(8, "tanh")])
    layer(batch(2, 8))
    return layer


KINDS = {
    "run": run,
    "exact run": lambda: run(exact=True),
    "recompute": recompute,
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@only["jax"]
def test_pitfall_16_second_derivatives_on_jax():
    import jax

    model, plain = run(), run(False)
    plain.set_weights(model.get_weights())
    x, v = batch(3, 8), batch(3, 8)[::-1]

    def hessian_product(layer):
        def total(x):
            params = [w.value for w in layer.trainable_variables]
            return (layer.stateless_call(params, [], x)[0] ** 2).sum()

        return jax.grad(lambda x: (jax.grad(total)(x) * v).sum())(x)

    expected = hessian_product(plain)
    assert np.any(expected != 0)
    np.testing.assert_allclose(hessian_product(model), expected, rtol=1e-3)


@only["jax"]
def test_pitfall_16_second_derivatives_through_rounding_raise_on_jax():
    import jax

    layer = run(exact=True)

    def total(x):
        return (layer(x) ** 2).sum()

    assert np.any(jax.grad(total)(batch(3, 8)) != 0)
    with pytest.raises(
        NotImplementedError, match="with `reversible=False, exact"
    ):
        jax.grad(lambda x: (jax.grad(total)(x) ** 2).sum())(batch(3, 8))


@only["jax"]
@every_kind
def test_pitfall_16_forward_mode_raises_on_jax(kind):
    import jax

    x = batch(3, 8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(kind(), (x,), (x,))


@only["tensorflow"]
@pytest.mark.parametrize("mode", ["eager", "graph"])
@every_kind
def test_pitfall_16_second_derivatives_raise_on_tensorflow(kind, mode):
    import tensorflow as tf

    layer, x = kind(), tf.constant(batch(3, 8))

    def second(sources):
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(sources)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(sources)
                y = tf.reduce_sum(layer(x) ** 2)
            first = inner.gradient(y, sources)
            assert all(d is not None for d in first)
        return outer.gradient(first[0], sources[0])

    for sources in ([x], [v.value for v in layer.trainable_variables]):
        call = functools.partial(second, sources)
        if mode == "graph":
            call = tf.function(call)
        with pytest.raises(NotImplementedError, match="differentiated twice"):
            call()


@only["torch"]
@every_kind
def test_pitfall_16_second_derivatives_raise_on_torch(kind):
    import torch

    x = torch.tensor(batch(3, 8), requires_grad=True)
    y = kind()(x).sum()  # with a cotangent that depends on nothing
    (expected,) = torch.autograd.grad(y, x, retain_graph=True)
    (d_x,) = torch.autograd.grad(y, x, create_graph=True)
    np.testing.assert_array_equal(d_x.detach(), expected)
    with pytest.raises(NotImplementedError, match="differentiated twice"):
        torch.autograd.grad(d_x.sum(), x)


@only["jax"]
@pytest.mark.parametrize("compiled", [True, False])
@every_kind
def test_vmap_over_the_batch(kind, compiled):
    import jax

    layer, x = kind(), batch(5, 8)

    def total(x):
        return (layer(x[None]) ** 2).sum()

    gradient = jax.vmap(jax.grad(total))
    found = (jax.jit(gradient) if compiled else gradient)(x)
    expected = jax.grad(lambda x: (layer(x) ** 2).sum())(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@only["jax"]
def test_pitfall_09_weights_are_not_baked_into_a_compiled_function():
    import jax

    layer = run()

    @jax.jit
    def gradient(params, x):
        def total(params):
            return (layer.stateless_call(params, [], x)[0] ** 2).sum()

        return jax.grad(total)(params)

    x, found = batch(3, 8), []
    params = [v.value for v in layer.trainable_variables]
    for scale in (1.0, 2.0):
        found.append(gradient([scale * p for p in params], x)[0])
    assert np.any(np.abs(found[0] - found[1]) > 1e-3)
    for variable in layer.trainable_variables:
        variable.assign(2.0 * variable)
    doubled = gradient([v.value for v in layer.trainable_variables], x)[0]
    np.testing.assert_allclose(doubled, found[1], rtol=1e-5)


@only["torch"]
def test_pitfall_20_hooks_and_autograd_grad_see_parameters_on_torch():
    import torch

    layer, seen = run(), []
    x = torch.tensor(batch(3, 8), requires_grad=True)
    parameters = [v.value for v in layer.trainable_variables]
    for p in parameters:
        p.register_hook(lambda d: seen.append(d) or 2 * d)
    loss = (layer(x) ** 2).sum()
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert len(seen) == len(parameters)
    loss.backward()
    for p, d in zip(parameters, found):
        torch.testing.assert_close(p.grad, d)
    # A second backward pass over a graph that was kept adds the same again.
    loss = (layer(x) ** 2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    for p, d in zip(parameters, found):
        torch.testing.assert_close(p.grad, 3 * d)


@only["torch"]
def test_pitfall_07_nothing_is_kept_or_freed_without_gradients():
    import torch

    layer, x = run(), torch.tensor(batch(3, 8), requires_grad=True)
    with torch.no_grad():
        y = layer(x)
    assert y.grad_fn is None and x.untyped_storage().nbytes() == 3 * 8 * 4
    np.testing.assert_array_equal(x.detach().numpy(), batch(3, 8))
    np.testing.assert_array_equal(*to_numpy([layer(x), y]))
