"""The contract of the primitives, the same on every backend."""

import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend


def array(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return values.astype("float32")


def tensor(*shape):
    return ops.convert_to_tensor(array(*shape))


def to_numpy(tree):
    return keras.tree.map_structure(ops.convert_to_numpy, tree)


def nested(point, scale):
    """Two outputs of a pair and a list; the analytic pullback is below."""
    x, (w,) = point["x"], point["w"]
    return {"product": ops.matmul(x, w), "rest": [scale * x**2]}


def pullback_of_nested(point, scale, d):
    x, (w,) = point["x"], point["w"]
    d_product, (d_rest,) = d["product"], d["rest"]
    d_x = d_product @ w.T + 2 * scale * x * d_rest
    return {"w": (x.T @ d_product,), "x": d_x}, np.sum(x**2 * d_rest)


def nested_arguments():
    point = {"x": tensor(4, 3), "w": (tensor(3, 2),)}
    scale = ops.convert_to_tensor(np.float32(1.5))
    return point, scale, {"product": tensor(4, 2), "rest": [tensor(4, 3)]}


def assert_close(ours, theirs):
    keras.tree.assert_same_structure(ours, theirs)
    pairs = zip(keras.tree.flatten(ours), keras.tree.flatten(theirs))
    for a, b in pairs:
        np.testing.assert_allclose(ops.convert_to_numpy(a), b, rtol=2e-5)


def test_vjp_of_nested_structures():
    point, scale, d = nested_arguments()
    outputs, pullback = backend.vjp(nested, point, scale)
    assert_close(outputs, nested(*to_numpy([point, scale])))
    d_point, d_scale = pullback(d)
    expected = pullback_of_nested(*to_numpy([point, scale, d]))
    assert_close([d_point, d_scale], list(expected))


def test_vjp_of_what_is_not_used_is_zero():
    x, unused = tensor(3), tensor(2, 2)
    outputs, pullback = backend.vjp(lambda x, unused: 3 * x, x, unused)
    d_x, d_unused = to_numpy(list(pullback(ops.ones(3))))
    np.testing.assert_allclose(d_x, [3, 3, 3])
    np.testing.assert_array_equal(d_unused, np.zeros((2, 2)))


def test_custom_vjp_of_nested_structures():
    """Values, residuals and cotangents keep their structure."""
    point, scale, d = nested_arguments()

    def forward(point, scale):
        return nested(point, scale), {"point": point, "scale": [scale]}

    def backward(residuals, d):
        point, (scale,) = residuals["point"], residuals["scale"]
        x, (w,) = point["x"], point["w"]
        d_product, (d_rest,) = d["product"], d["rest"]
        d_x = ops.matmul(d_product, ops.transpose(w)) + 2 * scale * x * d_rest
        d_w = ops.matmul(ops.transpose(x), d_product)
        return {"x": d_x, "w": (d_w,)}, ops.sum(x**2 * d_rest)

    fn = backend.custom_vjp(forward, backward)
    expected = nested(*to_numpy([point, scale]))
    assert_close(fn(point, scale), expected)
    outputs, pullback = backend.vjp(fn, point, scale)
    assert_close(outputs, expected)
    expected = pullback_of_nested(*to_numpy([point, scale, d]))
    assert_close(list(pullback(d)), list(expected))


def test_custom_vjp_uses_the_backward_it_is_given():
    fn = backend.custom_vjp(
        lambda x: (ops.sin(x), ()),
        lambda residuals, d: (d * 100 + 7,),  # on purpose not the derivative
    )
    # The chain goes on through it, on both sides.
    _, pullback = backend.vjp(lambda x: 2 * fn(3 * x), tensor(5))
    (d_x,) = pullback(ops.ones(5))
    np.testing.assert_allclose(ops.convert_to_numpy(d_x), [621] * 5)


def test_none_is_no_gradient():
    fn = backend.custom_vjp(
        lambda pair, x: (ops.sum(pair[0] * pair[1]) * x, (pair, x)),
        lambda residuals, d: (None, d),
    )
    pair, x = (tensor(4), tensor(4)), tensor(3)
    _, pullback = backend.vjp(fn, pair, x)
    (d_first, d_second), d_x = to_numpy(pullback(ops.ones(3)))
    np.testing.assert_array_equal(d_first, np.zeros(4))
    np.testing.assert_array_equal(d_second, np.zeros(4))
    np.testing.assert_array_equal(d_x, np.ones(3))


def test_integers_pass_through_custom_vjp():
    """A seed goes in, the next seed comes out; neither has a gradient."""
    seed = ops.convert_to_tensor(keras.random.SeedGenerator(3).state)
    assert "int" in keras.backend.standardize_dtype(seed.dtype)
    if keras.config.backend() == "jax":
        assert seed.dtype == "uint32"
    seen = []

    def forward(x, seed):
        return (x * x, {"next": seed + 1}), (x, seed)

    def backward(residuals, cotangents):
        x, seed = residuals
        seen.append(keras.tree.map_structure(ops.convert_to_numpy, seed))
        return 2 * x * cotangents[0], None

    fn = backend.custom_vjp(forward, backward)
    y, following = fn(tensor(4), seed)
    np.testing.assert_allclose(to_numpy(y), array(4) ** 2)
    np.testing.assert_array_equal(
        to_numpy(following["next"]), to_numpy(seed) + 1
    )
    assert following["next"].dtype == seed.dtype

    _, pullback = backend.vjp(lambda x: fn(x, seed)[0], tensor(4))
    (d_x,) = pullback(tensor(4))
    np.testing.assert_allclose(to_numpy(d_x), 2 * array(4) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(seen[0], to_numpy(seed))


@pytest.mark.parametrize("keep", [False, True])
def test_custom_vjp_keeps_its_residuals_only(keep):
    """`keep` is the control: what is a residual has to stay."""
    references = []

    def forward(x):
        between = x * x
        references.append(weakref.ref(between))
        return between * between, ((x, between) if keep else (x,))

    def backward(residuals, d):
        return (4 * residuals[0] ** 3 * d,)

    fn = backend.custom_vjp(forward, backward)
    y, pullback = backend.vjp(fn, tensor(4))
    assert (references[0]() is not None) == keep
    (d_x,) = pullback(ops.ones(4))
    np.testing.assert_allclose(to_numpy(d_x), 4 * array(4) ** 3, rtol=1e-5)


def test_saved_bytes_of_two_layers():
    """`tanh` keeps its outputs, and the second product its inputs: them."""
    params = [tensor(64, 64), tensor(64, 1)]

    def fn(params, x):
        return ops.matmul(ops.tanh(ops.matmul(x, params[0])), params[1])

    hidden = 1024 * 64 * 4
    measured = backend.saved_bytes(fn, params, tensor(1024, 64))
    # JAX reports the peak of the program: gradient and hidden layer at once.
    most = 3 if keras.config.backend() == "jax" else 1
    assert hidden <= measured <= most * hidden + 8192
    twice = backend.saved_bytes(fn, params, tensor(2048, 64))
    assert 1.9 < twice / measured < 2.1


def test_saved_bytes_leaves_its_arguments_alone():
    params, x = [tensor(8, 8)], tensor(16, 8)
    backend.saved_bytes(lambda p, x: ops.tanh(ops.matmul(x, p[0])), params, x)
    np.testing.assert_array_equal(to_numpy(params[0]), array(8, 8))
    np.testing.assert_array_equal(to_numpy(x), array(16, 8))


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="programs have no old gradients"
)
def test_old_gradients_are_there_until_they_are_dropped():
    params, x = [tensor(8, 8)], tensor(4, 8)

    def peak(drop, release=False):
        def fn(params, x):
            drop()
            ops.zeros((4096,)).sum()
            return ops.matmul(x, params[0])

        return backend.peak_bytes(fn, params, x, release)

    least = peak(lambda: None, release=True)
    assert peak(lambda: None) == least + params[0].nbytes
    assert peak(backend.drop_gradients) == least


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="its graph is gone through"
)
def test_an_image_is_gone_when_its_gradient_is_made():
    params, x = [tensor(32), tensor(1, 1, 32, 1)], tensor(4, 8, 8, 32)

    def fn(params, x):
        return ops.conv(x * params[0], params[1])

    size = 4 * (4 * 8 * 8 * 32)
    assert size < backend.peak_bytes(fn, params, x) < 1.5 * size


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="its workspace is in no plan"
)
def test_convolutions_of_jax_copy_what_they_read(monkeypatch):
    from keras_efficient.backend import jax_memory

    image, kernel = tensor(4, 8, 8, 32), tensor(3, 3, 32, 32)

    def fn(params, image):
        return ops.conv(image, params[0], padding="same")

    whole = backend.peak_bytes(fn, [kernel], image)
    monkeypatch.setattr(jax_memory, "_workspace", lambda jaxpr: 0)
    planned = backend.peak_bytes(fn, [kernel], image)
    # The image with its edge, and in the gradient the cotangent, too.
    assert whole - planned == 4 * 4 * 32 * (10 * 10 + 8 * 8)
