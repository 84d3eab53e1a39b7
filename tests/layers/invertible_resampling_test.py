import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import layers
from tests.compilers import compiled
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.gradients import gradients

BACKEND = keras.config.backend()
KINDS = ("pixel_shuffle", "haar", "orthogonal")
FORMATS = ("channels_last", "channels_first")
POOL_SIZES = (2, (2,), (1, 2), 3, (3, 1), 4, (2, 1, 2), (2, 2, 3))
SIZES = {1: (12,), 2: (12, 24), 3: (4, 2, 12)}


def layer(direction, rank, *args, **kwargs):
    return getattr(layers, f"Invertible{direction}sampling{rank}D")(
        *args, **kwargs
    )


def down(rank, *args, **kwargs):
    return layer("Down", rank, *args, **kwargs)


def up(rank, *args, **kwargs):
    return layer("Up", rank, *args, **kwargs)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def image(sizes, channels=2, data_format="channels_last"):
    if data_format == "channels_last":
        return random(3, *sizes, channels)
    return random(3, channels, *sizes)


def array(x):
    return ops.convert_to_numpy(x)


def close(x, y, atol=1e-5):
    np.testing.assert_allclose(array(x), array(y), rtol=0, atol=atol)


def with_random_kernel(layer, shape):
    if not layer.built:
        layer.build(shape)
    if layer.kernel is not None:
        layer.kernel.assign(random(*layer.kernel.shape))
    return layer


def matrix_of(layer):
    """U[c] as NumPy finds it."""
    if layer.kind == "pixel_shuffle":
        return np.eye(layer.sigma)[None]
    if layer.kind == "haar":
        r = 0.5**0.5
        axes = {
            1: [[1]],
            2: [[r, r], [r, -r]],
            4: [
                [0.5, 0.5, 0.5, 0.5],
                [0.5, 0.5, -0.5, -0.5],
                [r, -r, 0, 0],
                [0, 0, r, -r],
            ],
        }
        matrix = np.ones((1, 1))
        for size in layer.pool_size:
            matrix = np.kron(matrix, axes[size])
        return matrix[None]
    w = array(layer.kernel)
    a = w - w.transpose(0, 2, 1)
    eye = np.eye(layer.sigma)
    return np.linalg.inv(eye + a) @ (eye - a)


def by_loops(layer, x):
    """The definition, pixel by pixel, of a channels-last `x`."""
    *sizes, channels = x.shape[1:]
    matrix = matrix_of(layer)
    grid = [n // p for n, p in zip(sizes, layer.pool_size)]
    y = np.zeros((len(x), *grid, channels * layer.sigma))
    for cell in itertools.product(*map(range, grid)):
        for c in range(channels):
            window = [
                x[
                    :,
                    *(i * p + o for i, p, o in zip(cell, layer.pool_size, at)),
                    c,
                ]
                for at in itertools.product(*map(range, layer.pool_size))
            ]
            u = matrix[c % len(matrix)]
            for k in range(layer.sigma):
                y[:, *cell, c * layer.sigma + k] = sum(
                    u[k, j] * pixel for j, pixel in enumerate(window)
                )
    return y


def cases():
    for rank, pool_size, kind in itertools.product(
        (1, 2, 3), POOL_SIZES, KINDS
    ):
        size = (pool_size,) * rank if isinstance(pool_size, int) else pool_size
        if len(size) == rank and (kind != "haar" or 3 not in size):
            if all(n % p == 0 for n, p in zip(SIZES[rank], size)):
                yield rank, pool_size, kind


# The others compile a program for each case: they take each third, or fifth.
EACH = BACKEND == "torch"
CASES = [(*case, order) for case in cases() for order in FORMATS]
SETTINGS = [*itertools.product(("valid", "same"), KINDS, FORMATS)]
each_setting = pytest.mark.parametrize(
    "padding, kind, data_format", SETTINGS[:: 1 if EACH else 5]
)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_rank = pytest.mark.parametrize("rank", (1, 2, 3))
each_format = pytest.mark.parametrize("data_format", FORMATS)


@pytest.mark.parametrize(
    "rank, pool_size, kind, data_format", CASES[:: 1 if EACH else 3]
)
def test_pitfall_14_computes_its_equation_and_orders_channels(
    rank, pool_size, kind, data_format
):
    """And is inverted on both sides, and upsampling is the inverse."""
    atol = 0 if kind == "pixel_shuffle" else 5e-6
    x = image(SIZES[rank], 2, data_format)
    pool = down(rank, pool_size, kind, data_format=data_format)
    back = up(rank, pool_size, kind, data_format=data_format)
    with_random_kernel(pool, x.shape)
    shape = pool.compute_output_shape(x.shape)
    with_random_kernel(back, shape)  # the same numbers
    assert back.compute_output_shape(shape) == x.shape

    def run(x, other):
        y = pool(x)
        once = y, pool.inverse(y), pool(pool.inverse(other))
        return *once, back(y), back.inverse(x), back.inverse(back(y))

    other = random(*shape)
    y, *found = map(array, compiled(run)(x, other))
    assert y.shape == shape
    expected = x, other, x, y, y
    for a, b in zip(found, expected, strict=True):
        close(a, b, atol)
    if data_format == "channels_first":
        x, y = np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)
    close(y, by_loops(pool, x), 5e-6)


def test_two_by_two_pixels_shuffled_by_hand():
    x = np.arange(8.0).reshape(1, 2, 2, 2)  # channel 0 holds 0, 2, 4, 6
    y = array(down(2, kind="pixel_shuffle")(x))
    np.testing.assert_array_equal(y.ravel(), [0, 2, 4, 6, 1, 3, 5, 7])


@each_format
@each_kind
def test_windows_before_channels_are_the_same_numbers_in_another_order(
    kind, data_format
):
    x = image((4, 6), 3, data_format)
    usual = down(2, kind=kind, data_format=data_format)
    pool = down(2, kind=kind, data_format=data_format, order="windows")
    back = up(2, kind=kind, data_format=data_format, order="windows")
    for layer in (usual, pool):
        with_random_kernel(layer, x.shape)
    y = array(pool(x))
    with_random_kernel(back, y.shape)
    close(array(pool.inverse(y)), x, 5e-6)
    close(array(back(y)), x, 5e-6)
    axis = -1 if data_format == "channels_last" else 1
    order = np.arange(12).reshape(3, 4).T.ravel()  # c * 4 + k at k * 3 + c
    close(y, np.take(array(usual(x)), order, axis), 5e-6)


def test_haar_of_two_by_two_pixels_by_hand():
    y = down(2)(np.array([1.0, 2, 3, 5]).reshape(1, 2, 2, 1))
    close(array(y).ravel(), [5.5, -1.5, -2.5, 0.5])


@each_rank
@each_kind
def test_keeps_the_norm(rank, kind):
    x = image(SIZES[rank])
    pool = with_random_kernel(down(rank, (1, 2, 2)[-rank:], kind), x.shape)
    norm = np.linalg.norm(array(pool(x)))
    np.testing.assert_allclose(norm, np.linalg.norm(x), rtol=1e-6)


def test_learned_matrices_are_orthogonal_and_differ():
    x = image((4, 4))
    pool = with_random_kernel(down(2, 2, "orthogonal"), x.shape)
    units = np.eye(8, dtype="float32").reshape(8, 1, 1, 8)
    u = array(pool.inverse(units)).reshape(8, 4, 2)  # pixel, channel
    u = [u[:4, :, 0], u[4:, :, 1]]
    for matrix in u:
        close(matrix @ matrix.T, np.eye(4), 1e-6)
    assert np.abs(u[0] - u[1]).max() > 0.1


def test_a_learned_matrix_starts_as_a_pixel_shuffle():
    x = image((6, 6))
    learned, shuffle = down(2, 2, "orthogonal"), down(2, 2, "pixel_shuffle")
    close(learned(x), shuffle(x), 0)
    assert [tuple(v.shape) for v in learned.trainable_variables] == [(2, 4, 4)]
    assert not shuffle.variables and not down(2).variables


def test_kernel_initializer_is_used():
    pool = down(1, 2, "orthogonal", kernel_initializer="ones")
    pool.build((None, 4, 3))
    close(pool.kernel, np.ones((3, 2, 2)))


@each_format
@each_rank
def test_pitfall_14_odd_sizes(rank, data_format):
    sizes = (3, 4, 5)[-rank:]
    x = image(sizes, 2, data_format)
    with pytest.raises(ValueError, match=r"`pool_size` divides. Received: .*5"):
        down(rank, data_format=data_format)(x)
    pool = down(rank, padding="same", data_format=data_format)
    y = pool(x)
    assert tuple(y.shape) == pool.compute_output_shape(x.shape)
    close(pool.inverse(y, output_size=sizes), x)
    padded = array(pool.inverse(y))
    axes = slice(1, -1) if data_format == "channels_last" else slice(2, None)
    assert padded.shape[axes] == tuple(n + n % 2 for n in sizes)
    # Zeros, at the end.
    after = [(0, n - m) for n, m in zip(padded.shape, x.shape)]
    close(padded, np.pad(x, after))


def test_padding_of_an_upsampling_layer_is_that_of_its_inverse():
    x = image((5,))
    y = up(1, padding="same").inverse(x)
    close(y, down(1, padding="same")(x), 0)
    with pytest.raises(ValueError, match="`pool_size` divides"):
        up(1).inverse(x)


@pytest.mark.parametrize("output_size", [4, 7, (5, 6), 0])
def test_a_wrong_output_size_is_refused(output_size):
    pool = down(1, padding="same")
    with pytest.raises(ValueError, match=r"`output_size` must be .*\(6,\)"):
        pool.inverse(pool(image((5,))), output_size=output_size)


@each_setting
def test_unknown_sizes(padding, kind, data_format):
    shape = (None, None, 3) if data_format == FORMATS[0] else (3, None, None)
    settings = {"kind": kind, "data_format": data_format, "padding": padding}
    inputs = keras.Input(shape)
    encoder, decoder = down(2, **settings), up(2, **settings)
    code = encoder(inputs)
    channels = 1 if data_format == "channels_first" else -1
    assert code.shape[channels] == 12 and code.shape.count(None) == 3
    outputs = decoder(code)
    assert outputs.shape == (None, *shape)
    model = keras.Model(inputs, [code, outputs])
    for sizes in ((4, 6), (2, 8), (3, 5))[: 3 if padding == "same" else 2]:
        x = image(sizes, 3, data_format)
        code, y = model.predict(x, verbose=0)
        close(code, encoder(x))
        close(y, decoder(encoder(x)))
        close(encoder.inverse(code, output_size=sizes), x)


def test_unknown_sizes_inside_another_model():
    inputs = keras.Input((None, None, 3))
    outputs = keras.Sequential([down(2), up(2)])(inputs)
    assert outputs.shape[-1] == 3
    x = image((4, 6), 3)
    close(keras.Model(inputs, outputs)(x), x)


class UNet(keras.Model):
    """Uses `inverse` with the learned weights, for any sizes."""

    def __init__(self):
        super().__init__()
        self.pool = down(2, 2, "orthogonal", padding="same")
        self.dense = keras.layers.Dense(8, "tanh")

    def call(self, x):
        y = self.dense(self.pool(x))
        return self.pool.inverse(y, output_size=ops.shape(x)[1:-1])

    def compute_output_shape(self, input_shape):
        return input_shape


def test_trains_in_a_model_that_uses_the_inverse():
    model = UNet()
    model.compile(keras.optimizers.Adam(0.02), "mse", **fit_mode(LAST))
    x = image((5, 6))
    model(x)
    before = array(model.pool.kernel)
    losses = model.fit(x, x, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert np.abs(array(model.pool.kernel) - before).max() > 0.01
    code = model.pool(x)
    close(model.pool.inverse(code, output_size=(5, 6)), x)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow")
@each_setting
def test_unknown_sizes_in_a_compiled_graph(padding, kind, data_format):
    import tensorflow as tf

    first = data_format == "channels_first"
    shape = (None, 2, None, None) if first else (None, None, None, 2)
    pool = down(2, 2, kind, padding, data_format)
    with_random_kernel(pool, shape)
    sizes = slice(2, None) if first else slice(1, -1)

    @tf.function(jit_compile=True, input_signature=[tf.TensorSpec(shape)])
    def there_and_back(x):
        y = pool(x)
        return y, pool.inverse(y, output_size=ops.shape(x)[sizes])

    x = image((4, 6) if padding == "valid" else (3, 5), 2, data_format)
    y, x_again = there_and_back(x)
    close(y, pool(x))
    close(x_again, x)


@each_rank
@pytest.mark.parametrize("direction", ["Down", "Up"])
def test_gradients_are_those_of_finite_differences(float64, rank, direction):
    x = random(2, *(4, 2, 2)[:rank], 8).astype("float64")
    pool = layer(direction, rank, (2, 1, 2)[:rank], "orthogonal")
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, ops.sigmoid(pool(inputs)))
    with_random_kernel(pool, x.shape)
    (y,), (d_x,), (d_kernel,) = gradients(model, [x])
    assert y.dtype == d_kernel.dtype == "float64"

    def total(x, kernel):
        pool.kernel.assign(kernel)
        return np.sum(array(model(x)) ** 2)

    kernel, eps = array(pool.kernel), 1e-6
    to_x = np.random.default_rng(1).normal(size=x.shape)
    to_kernel = np.random.default_rng(2).normal(size=kernel.shape)
    for dx, dk in ((to_x, 0), (0, to_kernel)):
        slope = total(x + eps * dx, kernel + eps * dk)
        slope = (slope - total(x - eps * dx, kernel - eps * dk)) / (2 * eps)
        expected = np.sum(d_x * dx) + np.sum(d_kernel * dk)
        np.testing.assert_allclose(slope, expected, rtol=1e-7)


@each_kind
def test_float64_is_kept(float64, kind):
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    pool = with_random_kernel(down(2, 2, kind), x.shape)
    y = pool(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float64"
    close(pool.inverse(y), x, 1e-14)
    close(y, by_loops(pool, x), 1e-14)


@each_kind
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_lower_precision(kind, policy):
    x = ops.cast(image((4, 4)), "bfloat16")
    pool = down(2, 2, kind, dtype=policy)
    y = with_random_kernel(pool, x.shape)(x)
    x_again = pool.inverse(y)
    for z in (y, x_again, pool(keras.Input((4, 4, 2)))):
        assert keras.backend.standardize_dtype(z.dtype) == "bfloat16"
    x, y, x_again = (array(ops.cast(z, "float32")) for z in (x, y, x_again))
    atol = 0 if kind == "pixel_shuffle" else 0.05
    close(x_again, x, atol)
    if policy == "mixed_bfloat16":
        close(y, by_loops(pool, x), atol)


def test_low_precision_does_not_reach_the_cayley_map():
    pool = with_random_kernel(
        down(2, 2, "orthogonal", dtype="mixed_bfloat16"), (None, 4, 4, 2)
    )
    twin = with_random_kernel(down(2, 2, "orthogonal"), (None, 4, 4, 2))
    x = np.eye(16, dtype="float32").reshape(16, 4, 4, 1)[..., [0, 0]]
    # Products with ones and zeros: all that is left is the rounding of U.
    close(
        ops.cast(pool(x), "float32"),
        ops.cast(ops.cast(twin(x), "bfloat16"), "float32"),
        0,
    )


@each_kind
def test_inverse_of_numpy_and_integer_values(kind):
    x = np.arange(16).reshape(1, 4, 4, 1)
    for value in (x, x.astype("float64"), x.astype("uint8")):
        y = down(2, 2, kind)(value)
        assert keras.backend.standardize_dtype(y.dtype) == "float32"
        pool = down(2, 2, kind)
        pool.build(x.shape)
        close(pool.inverse(array(y).astype("float64")), x)


@each_rank
@pytest.mark.parametrize("direction", ["Down", "Up"])
def test_config_round_trip(rank, direction):
    pool_size = (2, 1, 3)[:rank]
    pool = layer(
        direction,
        rank,
        pool_size,
        "orthogonal",
        "same",
        "channels_first",
        kernel_initializer=keras.initializers.RandomNormal(0.1, seed=1),
        name="pool",
    )
    config = pool.get_config()
    again = type(pool).from_config(config)
    assert again.get_config() == config
    assert again.pool_size == pool_size
    assert again.kind == "orthogonal" and again.padding == "same"
    assert again.data_format == "channels_first" and again.name == "pool"
    assert again.kernel_initializer.mean == 0.1


@each_rank
@each_kind
def test_saving(rank, kind, tmp_path):
    inputs = keras.Input((4, 4, 4)[:rank] + (2,))
    encoder, decoder = down(rank, 2, kind), up(rank, 2, kind)
    model = keras.Model(inputs, [encoder(inputs), decoder(encoder(inputs))])
    for index, variable in enumerate(model.variables):
        variable.assign(random(*variable.shape) + index)
    x = image((4, 4, 4)[:rank])
    expected = model(x)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for y, z in zip(again(x), expected):
        close(y, z, 0)


def test_data_format_defaults_to_that_of_keras():
    default = keras.config.image_data_format()
    try:
        for data_format in FORMATS:
            keras.config.set_image_data_format(data_format)
            assert down(2).data_format == data_format
    finally:
        keras.config.set_image_data_format(default)


@pytest.mark.parametrize("size", [3, (2, 6), (5, 1)])
def test_haar_needs_powers_of_two(size):
    with pytest.raises(ValueError, match="`kind='haar'` and.*powers of two"):
        down(2, size)


@pytest.mark.parametrize(
    "name, value",
    [
        ("kind", "fourier"),
        ("padding", "reflect"),
        ("data_format", "channels"),
        ("pool_size", 0),
        ("pool_size", (2, 2, 2)),
        ("pool_size", (2, 0)),
        ("pool_size", (2, 1.5)),
        ("pool_size", 2.0),
        ("pool_size", None),
    ],
)
def test_a_wrong_argument_is_refused(name, value):
    for direction in ("Down", "Up"):
        with pytest.raises(ValueError, match=f"`{name}` must be.*Received"):
            layer(direction, 2, **{name: value})


@each_format
def test_channels_must_make_whole_windows(data_format):
    x = image((4, 4), 6, data_format)
    expected = "must be divisible by 4.*Received: shape="
    with pytest.raises(ValueError, match=expected):
        up(2, data_format=data_format)(x)
    with pytest.raises(ValueError, match=expected):
        up(2, data_format=data_format)(keras.Input(x.shape[1:]))
    with pytest.raises(ValueError, match=expected):
        down(2, data_format=data_format).inverse(x)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 4, None)])
def test_a_wrong_input_is_refused(shape):
    expected = r"\(batch, size_1, size_2, channels\) with a known number"
    for pool in (down(2), up(2), down(2, 2, "orthogonal")):
        with pytest.raises(ValueError, match=expected):
            pool(keras.Input(shape))
        if None not in shape:
            with pytest.raises(ValueError, match=expected):
                pool(random(3, *shape))


def test_odd_sizes_are_refused_before_the_model_runs():
    with pytest.raises(ValueError, match="divides.*Received.*5, 4, 2"):
        down(2)(keras.Input((5, 4, 2)))


def test_inverse_needs_the_weights():
    for pool in (down(1, 2, "orthogonal"), up(1, 2, "orthogonal")):
        with pytest.raises(ValueError, match="has to be built before"):
            pool.inverse(image((4,), 4))


def test_inverse_of_a_symbolic_tensor_is_refused():
    for pool in (down(1), up(1)):
        with pytest.raises(ValueError, match="`inverse` takes a tensor of val"):
            pool.inverse(keras.Input((4, 4)))
