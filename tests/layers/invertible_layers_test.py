import math
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import layers
from tests.compilers import compiled
from tests.gradients import LAST
from tests.gradients import gradients

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* maps")

FORMATS = ("channels_last", "channels_first")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def close(x, y, atol=1e-5):
    np.testing.assert_allclose(array(x), array(y), rtol=0, atol=atol)


def conv(rank, *args, **kwargs):
    return getattr(layers, f"InvertibleConv{rank}D")(*args, **kwargs)


def image(sizes, channels=2, data_format="channels_last"):
    if data_format == "channels_last":
        return random(3, *sizes, channels)
    return random(3, channels, *sizes)


def product(x, y):
    return np.sum(array(x).astype("float64") * array(y))


# One axis of a convolution: (stride, kernel size, size of the image).
AXES = [
    *((1, k, 7) for k in (1, 2, 3, 4)),
    *((2, k, n) for k in (2, 3, 4) for n in (7, 8)),
    *((3, k, n) for k in (3, 4) for n in (7, 8)),
]


def cases():
    """Every axis with both paddings, in turns in both data formats."""
    half = len(AXES) // 2
    settings = [(2, axes) for axes in zip(AXES[:half], AXES[half:])]
    settings += [(1, (AXES[i],)) for i in (2, 6, 9)]
    settings += [(3, (AXES[i], (1, 2, 3), (2, 3, 4))) for i in (1, 8)]
    for i, (rank, axes) in enumerate(settings):
        for padding in ("same", "valid"):
            yield rank, axes, padding, FORMATS[(i + len(padding)) % 2]


@pytest.mark.parametrize("rank, axes, padding, data_format", list(cases()))
def test_the_transposed_convolution_is_the_exact_adjoint(
    rank, axes, padding, data_format
):
    strides, kernel_size, sizes = zip(*axes)
    layer = conv(
        rank,
        4,
        kernel_size,
        strides,
        padding,
        data_format,
        kernel_initializer="glorot_uniform",
        bias_initializer="normal",
    )
    x = image(sizes, 2, data_format)
    layer.build(x.shape)
    v = random(*layer.compute_output_shape(x.shape), seed=1)
    axis = -1 if data_format == "channels_last" else 1
    shape = [1] * (rank + 2)
    shape[axis] = 4
    bias = array(layer.bias).reshape(shape)
    assert np.abs(bias).max() > 0

    def run(x, v):
        return layer.linear(x), layer.adjoint(v), layer(x), layer.inverse(v)

    y, u, outputs, inputs = compiled(run)(x, v)
    assert y.shape == outputs.shape == v.shape
    assert tuple(u.shape) == x.shape == layer.compute_inverse_shape(y.shape)
    scale = np.linalg.norm(array(y)) * np.linalg.norm(v)
    # <E x, v> = <x, E^T v>, to a few units in the last place of float32.
    assert abs(product(y, v) - product(x, u)) < 3e-7 * scale
    close(outputs, array(y) + bias, 1e-6)
    bias = np.broadcast_to(bias, v.shape).astype("float32")
    close(array(u) - array(inputs), layer.adjoint(bias), 1e-5)


@pytest.mark.parametrize("rank", (1, 2, 3))
@pytest.mark.parametrize("data_format", FORMATS)
def test_convolutions_start_with_an_exact_inverse(rank, data_format):
    sizes = (4, 6, 2)[:rank]
    x = image(sizes, 2, data_format)
    settings = {"padding": "same", "data_format": data_format}
    layer = conv(rank, 2 * 2**rank, 3, 2, **settings)
    close(layer.inverse(layer(x)), x, 2e-6)
    assert layer.kernel_initializer.strides == (2,) * rank
    plain = conv(rank, 2, 3, **settings)
    y = plain(x)
    close(plain.inverse(y), x, 2e-6)
    close(plain(plain.inverse(x)), x, 2e-6)
    norm = np.linalg.norm(array(y))
    np.testing.assert_allclose(norm, np.linalg.norm(x), rtol=1e-5)


def test_convolutions_of_unknown_size():
    inputs = keras.Input((None, None, 2))
    layer = layers.InvertibleConv2D(8, 3, 2, "same")
    code = layer(inputs)
    outputs = layers.Inverse(layer)(code)
    assert outputs.shape == (None, None, None, 2)
    model = keras.Model(inputs, outputs)
    for sizes in ((4, 6), (2, 8)):
        x = image(sizes)
        close(model.predict(x, verbose=0), x)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a graph of TensorFlow"
)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("built_for", [None, 7])
def test_unknown_sizes_in_a_graph(padding, built_for):
    import tensorflow as tf

    layer = layers.InvertibleConv1D(8, 4, 2, padding)
    layer.build((None, built_for, 2))

    def adjoint(y):
        return layer.adjoint(y)

    signature = [tf.TensorSpec((None, None, 8))]
    graph = tf.function(adjoint, signature)
    # XLA compiles for each size.
    by_xla = tf.function(adjoint, signature, jit_compile=True)
    for n in (7, 8, 10, 12):
        y = layer.convolution_op(image((n,)), layer.kernel)
        close(graph(y), layer.adjoint(y))
        if n < 10:
            close(by_xla(y), layer.adjoint(y))


def test_a_dense_layer_and_its_inverse():
    x = random(5, 3, 6)
    layer = layers.InvertibleDense(
        6, kernel_initializer="normal", bias_initializer="normal"
    )
    w, b = (array(v) for v in (layer.build(x.shape), layer.variables)[1])
    close(layer(x), x @ w + b)
    close(layer.inverse(x), (x - b) @ w.T)
    close(layer.linear(x), x @ w)
    close(layer.adjoint(x), x @ w.T)
    start = layers.InvertibleDense(6, bias_initializer="normal")
    close(start.inverse(start(x)), x)


def test_leaky_relu_and_its_inverse():
    x = random(4, 3, 2)
    layer = layers.InvertibleLeakyReLU(4.0, 0.25)
    y = layer(x)
    close(y, np.where(x >= 0, 4 * x, x / 4), 0)
    close(layer.inverse(y), x, 0)
    assert not layer.variables
    close(layer.linear(x), x, 0)
    close(layer.adjoint(x), x, 0)


@pytest.mark.parametrize("axis", [-1, 1])
def test_learned_slopes(axis):
    x = random(4, 3, 5)
    layer = layers.InvertibleLeakyReLU(3.0, 0.5, learned=True, axis=axis)
    close(layer(x), np.where(x >= 0, 3 * x, x / 2))
    for variable in layer.trainable_variables:
        assert math.prod(variable.shape) == x.shape[axis]
        variable.assign(random(*variable.shape, seed=len(variable.path)))
    assert len(layer.trainable_variables) == 2
    positive, negative = (np.exp(array(v)) for v in layer.variables)
    y = layer(x)
    close(y, np.where(x >= 0, x * positive, x * negative))
    close(layer.inverse(y), x)


def test_a_residual_block_and_its_inverse():
    dense = layers.InvertibleDense(6, False, kernel_initializer="normal")
    block = layers.InvertibleResidual(dense)
    x = random(4, 6)
    w = array((block(x), dense.kernel)[1])
    close(block(x), x + x @ w)
    close(block.inverse(x), x + x @ w.T)
    close(block.linear(x), x + x @ w)
    close(block.adjoint(x), x + x @ w.T)
    # A rotation by 120 degrees less the identity: E is orthonormal.
    c, s = -0.5, 0.75**0.5
    pair = layers.InvertibleDense(2, False)
    block = layers.InvertibleResidual(pair)
    x = random(4, 2)
    block(x)
    pair.kernel.assign([[c - 1, s], [-s, c - 1]])
    close(block.inverse(block(x)), x)


def stack(learned=True):
    """Something of everything, from 6 x 6 x 2 pixels to 3 x 3 x 8."""
    residual = layers.InvertibleConv2D(
        8, 3, padding="same", use_bias=False, kernel_initializer="zeros"
    )
    return layers.InvertibleSequential(
        [
            layers.InvertibleConv2D(8, 3, 2, "same", bias_initializer="normal"),
            layers.InvertibleLeakyReLU(learned=learned),
            layers.InvertibleResidual(residual),
            layers.InvertibleDense(8),
        ]
    )


def test_a_stack_and_its_inverse():
    x, layer = image((6, 6)), stack()
    y = layer(x)
    assert tuple(y.shape) == layer.compute_output_shape(x.shape)
    assert layer.compute_inverse_shape(y.shape) == x.shape
    close(layer.inverse(y), x)
    close(layer.adjoint(layer.linear(x)), x)
    one = random(*y.shape)
    assert abs(
        product(layer.linear(x), one) - product(x, layer.adjoint(one))
    ) < (1e-5 * np.linalg.norm(x) * np.linalg.norm(one))


def test_a_stack_of_other_layers_with_an_inverse():
    coupling = layers.AdditiveCoupling(keras.layers.Dense(4, "tanh"))
    parts = [layers.InvertibleDownsampling2D(), coupling]
    x = image((4, 4))
    inputs = keras.Input(x.shape[1:])
    layer = layers.InvertibleSequential(parts)
    outputs = layers.Inverse(layer)(layer(inputs))
    assert outputs.shape[1:] == x.shape[1:]
    close(keras.Model(inputs, outputs)(x), x)
    with pytest.raises(TypeError, match="no linear part"):
        layer.linear(x)


def there_and_back(learned=True):
    inputs = keras.Input((6, 6, 2))
    layer = stack(learned)
    code = keras.layers.Dense(8, name="outside")(layer(inputs))
    return keras.Model(inputs, layers.Inverse(layer)(code)), layer


def test_inverse_shares_the_weights():
    model, layer = there_and_back()
    assert len(model.weights) == len(layer.weights) + 2
    paths = [v.path for v in model.weights]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("part", ["all", "decoder"])
def test_inverse_shares_the_weights_after_loading(part, tmp_path):
    model, layer = there_and_back()
    x = image((6, 6))
    if part == "decoder":
        inputs = keras.Input((3, 3, 8))
        model = keras.Model(inputs, layers.Inverse(layer)(inputs))
        x = image((3, 3), 8)
    for index, variable in enumerate(model.variables):
        variable.assign(random(*variable.shape, seed=index))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    close(again(x), model(x), 0)
    assert len(again.weights) == len(model.weights)
    assert again.count_params() == model.count_params()
    for variable in again.variables:  # one weight moves both directions
        variable.assign_add(0.1 * random(*variable.shape))
    model.set_weights(again.get_weights())
    close(again(x), model(x), 0)
    model.save_weights(tmp_path / "model.weights.h5")
    before = array(model(x))
    for variable in model.variables:
        variable.assign(0 * variable)
    model.load_weights(tmp_path / "model.weights.h5")
    close(model(x), before, 0)


def test_the_inverse_of_an_inverse_is_the_layer():
    dense = layers.InvertibleDense(4)
    dense.build((None, 4))
    x = random(2, 4)
    inverse = layers.Inverse(dense)
    close(layers.Inverse(inverse)((inverse(x), x)[1]), dense(x), 0)


def test_gradients_pass_through_both_directions():
    model, layer = there_and_back()
    for index, variable in enumerate(model.variables):
        value = array(variable)
        variable.assign(value + 0.1 * random(*value.shape, seed=index))
    x = image((6, 6))
    (y,), (d_x,), d_variables = gradients(model, [x], LAST)
    close(y, model(x))

    def total(x):
        return np.sum(array(model(x)).astype("float64") ** 2)

    rng, eps = np.random.default_rng(1), 1e-2
    direction = rng.normal(size=x.shape)
    slope = (total(x + eps * direction) - total(x - eps * direction)) / 2 / eps
    np.testing.assert_allclose(slope, np.sum(d_x * direction), rtol=2e-2)
    for variable, d in zip(model.trainable_variables, d_variables):
        value = array(variable)
        direction = rng.normal(size=value.shape).astype("float32")
        direction /= np.linalg.norm(direction)
        totals = []
        for sign in (1, -1):
            variable.assign(value + sign * eps * direction)
            totals.append(total(x))
        variable.assign(value)
        slope = (totals[0] - totals[1]) / 2 / eps
        expected = np.sum(d * direction)
        scale = np.linalg.norm(d)
        assert abs(slope - expected) < 2e-2 * scale, variable.path


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    x = image((6, 6))
    dtype = policy.split("_")[1]
    keras.config.set_dtype_policy(policy)
    try:
        layer = stack()
        inputs = keras.Input(x.shape[1:])
        model = keras.Model(inputs, layers.Inverse(layer)(layer(inputs)))
    finally:
        keras.config.set_dtype_policy("float32")
    y = layer(x)
    for z in (y, layer.inverse(y), layer.linear(x), layer.adjoint(y), model(x)):
        assert keras.backend.standardize_dtype(z.dtype) == dtype
    assert {v.dtype for v in model.weights} == {"float32"}
    close(model(x), x, 0.05 if dtype == "float16" else 0.4)


@pytest.mark.parametrize("learned", [False, True])
def test_inverse_slopes_do_not_overflow_float16(learned):
    layer = layers.InvertibleSequential(
        [
            layers.InvertibleLeakyReLU(1.0, 0.2, learned, dtype="mixed_float16")
            for _ in range(9)
        ],
        dtype="mixed_float16",
    )
    y = np.array([[1.0, -1.0, -100.0]], "float16")
    layer.build(y.shape)
    limit = float(np.finfo("float16").max)
    # 5^9 = 2e6 is beyond float16, and would be infinite without a limit.
    found = array(layer.inverse(y))
    close(found, [[1.0, -limit, -limit]], 0)
    tiny = layers.InvertibleLeakyReLU(1.0, 1e-6, learned, dtype="mixed_float16")
    tiny.build(y.shape)
    assert array(tiny.inverse(y)).min() == -limit
    close(tiny.inverse(np.array([[-1e-4]] * 3, "float16").T), -100, 5)


def test_configs_round_trip():
    for layer in (
        layers.InvertibleDense(3, False, "zeros", kernel_regularizer="l2"),
        layers.InvertibleConv1D(3, 2, 1, "same", "channels_first", False),
        layers.InvertibleConv2D(3, (3, 2), (2, 1), bias_initializer="ones"),
        layers.InvertibleConv3D(3, 2, kernel_initializer="ones"),
        layers.InvertibleLeakyReLU(3.0, 0.1, True, 1),
        stack(),
        layers.InvertibleResidual(layers.InvertibleDense(3, False)),
        layers.Inverse(layers.InvertibleDense(3)),
    ):
        config = layer.get_config()
        assert type(layer).from_config(config).get_config() == config


def warnings_of(layer, shape):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.build(shape)
        layer(np.zeros([2, *shape[1:]]))
        layer(np.zeros([2, *shape[1:]]))
    return [str(w.message) for w in caught if " maps " in str(w.message)]


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (
            layers.InvertibleDense(4),
            (None, 6),
            r"maps 6 features to 4.*restore 4 dim.*other 2 are lost",
        ),
        (
            layers.InvertibleDense(6),
            (None, 4),
            r"maps 4 features to 6, more than it can invert.*only 4 .*2 are",
        ),
        (
            layers.InvertibleConv2D(3, 3, 2, "same"),
            (None, 4, 6, 1),
            r"maps 24 features to 18.*other 6 are lost",
        ),
        (
            layers.InvertibleConv1D(8, 2, 2, data_format="channels_first"),
            (None, 2, 6),
            r"maps 12 features to 24, more.*other 12 are lost",
        ),
    ],
)
def test_a_map_that_loses_dimensions_warns_once(layer, shape, expected):
    import re

    (message,) = warnings_of(layer, shape)
    assert re.search(expected, message)


def test_a_map_that_keeps_all_dimensions_does_not_warn():
    assert not warnings_of(layers.InvertibleDense(4), (None, 4))
    conv = layers.InvertibleConv2D(4, 3, 2, "same")
    assert not warnings_of(conv, (None, 4, 6, 1))


@pytest.mark.parametrize("padding, n", [("same", 7), ("valid", 8)])
def test_strides_that_do_not_restore_the_size_are_refused(padding, n):
    x = image((n,))
    layer = layers.InvertibleConv1D(4, 3, 2, padding)
    layer.build((None, None, 2))
    expected = rf"do not restore the size \({n},\): `inverse` would return"
    with pytest.raises(ValueError, match=expected):
        layer(x)
    with pytest.raises(ValueError, match=expected):
        layer.linear(x)
    layer = layers.InvertibleConv1D(4, 3, 2, padding)
    assert layer.inverse(layer(x)).shape == x.shape
    other = 8 if n == 7 else 7
    with pytest.raises(ValueError, match=rf"\({other},\).*built for \({n},\)"):
        layer(image((other,)))


@pytest.mark.parametrize("slope", [0, -0.1, math.inf, math.nan])
def test_slopes_must_be_positive(slope):
    for name in ("positive_slope", "negative_slope"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive"):
            layers.InvertibleLeakyReLU(**{name: slope})


@pytest.mark.parametrize(
    "make, error, expected",
    [
        (
            lambda: layers.InvertibleDense(3, activation="relu"),
            ValueError,
            "no inverse with these arguments.*relu.*InvertibleLeakyReLU",
        ),
        (
            lambda: layers.InvertibleConv2D(4, 3, groups=2),
            ValueError,
            "no inverse with these arguments.*groups",
        ),
        (
            lambda: layers.InvertibleConv1D(4, 3, padding="causal"),
            ValueError,
            "`padding` must be 'valid' or 'same'.*causal",
        ),
        (
            lambda: layers.InvertibleConv2D(4, (3, 1), 2),
            ValueError,
            r"`strides` larger than `kernel_size` skip.*\(2, 2\).*\(3, 1\)",
        ),
        (
            lambda: layers.InvertibleSequential([]),
            ValueError,
            "at least one layer",
        ),
        (
            lambda: layers.InvertibleSequential([keras.layers.Dense(3)]),
            TypeError,
            "must have a method `inverse`",
        ),
        (
            lambda: layers.Inverse(keras.layers.Dense(3)),
            TypeError,
            "must have a method `inverse`",
        ),
        (
            lambda: layers.Inverse(layers.InvertibleDense(3))(random(2, 3)),
            ValueError,
            "has to be built before",
        ),
        (
            lambda: layers.InvertibleDense(3).inverse(random(2, 3)),
            ValueError,
            "has to be built before `inverse`",
        ),
        (
            lambda: layers.InvertibleResidual(keras.layers.Dense(3)),
            TypeError,
            "must be an `InvertibleDense` or an invertible convolution",
        ),
        (
            lambda: layers.InvertibleResidual(layers.InvertibleDense(3)),
            ValueError,
            "bias of a residual branch cannot be undone",
        ),
        (
            lambda: layers.InvertibleResidual(layers.InvertibleDense(3, False))(
                random(2, 4)
            ),
            ValueError,
            "must return the shape that it gets",
        ),
        (
            lambda: layers.InvertibleLeakyReLU(learned=True, axis=0)(
                random(2, 4)
            ),
            ValueError,
            "`axis` must be an axis of known size",
        ),
    ],
)
def test_bad_input_is_refused(make, error, expected):
    with pytest.raises(error, match=expected):
        make()


def test_a_symbolic_inverse_is_refused():
    layer = layers.InvertibleDense(3)
    x = keras.Input((3,))
    with pytest.raises(ValueError, match=r"layers.Inverse\(layer\)"):
        layer.inverse(layer(x))
