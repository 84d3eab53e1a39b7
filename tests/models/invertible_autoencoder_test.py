import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import layers
from keras_efficient import metrics
from keras_efficient import models
from tests.gradients import LAST
from tests.gradients import fit_mode

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* maps")

# Singular values of 1/2.
HALF = keras.initializers.Orthogonal(0.5, seed=1)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def dense(*widths, learned=False, **kwargs):
    """Dense layers of these widths with activations between them."""
    parts = []
    for units in widths:
        parts += [
            layers.InvertibleDense(units, **kwargs),
            layers.InvertibleLeakyReLU(learned=learned),
        ]
    return models.InvertibleAutoencoder(parts[:-1])


def convolutional(**kwargs):
    return models.InvertibleAutoencoder(
        [
            layers.InvertibleConv2D(8, 3, 2, "same", **kwargs),
            layers.InvertibleLeakyReLU(learned=True),
            layers.InvertibleConv2D(16, 3, 2, "same", **kwargs),
        ]
    )


def errors(model, n):
    units = np.eye(n, dtype="float32")
    product = model.linear(units)
    return [
        float(metrics.OrthonormalityError(part)(units, product))
        for part in ("diagonal", "off_diagonal")
    ]


def test_fit_drives_the_weights_to_orthonormality():
    model = dense(6, 6, kernel_initializer=HALF)
    x = random(128, 6)
    model.compile(keras.optimizers.Adam(0.01), "mse", **fit_mode(LAST))
    model.build(x.shape)
    before = errors(model, 6)
    history = model.fit(x, epochs=20, batch_size=8, verbose=0)
    after = errors(model, 6)
    assert history.history["loss"][-1] < 1e-3
    assert before[0] > 0.5 and max(after) < 1e-4
    for layer in model.encoder.layers[::2]:  # each kernel, not the product
        values = np.linalg.svd(array(layer.kernel))[1]
        np.testing.assert_allclose(values, 1, atol=0.1)
    loss = model.evaluate(x, verbose=0)
    np.testing.assert_allclose(
        loss, np.mean((x - array(model(x))) ** 2), rtol=1e-3
    )
    np.testing.assert_allclose(model.evaluate(x, x, verbose=0), loss)


def test_a_convolutional_autoencoder_trains():
    model = convolutional()
    x = random(8, 7, 9, 1)
    model.compile(
        keras.optimizers.Adam(0.01),
        "mse",
        metrics=["mae"],
    )
    history = model.fit(x, epochs=10, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["mae"][-1] < history["mae"][0]
    assert model.encode(x).shape == (8, 2, 3, 16)
    assert model.predict(x, verbose=0).shape == x.shape


def test_encode_and_decode():
    model = dense(6, 6, learned=True)
    x = random(4, 6)
    code = model.encode(x)
    np.testing.assert_allclose(array(model.decode(code)), x, atol=1e-5)
    np.testing.assert_allclose(array(model(x)), x, atol=1e-5)
    assert np.abs(array(code) - x).max() > 0.1


@pytest.mark.parametrize("make, shape", [(dense, (6,)), (convolutional, None)])
def test_at_most_half_the_parameters_of_the_untied_twin(make, shape):
    if make is dense:
        model = dense(48, 32, 16, kernel_initializer="zeros")
        model.build((None, 64))
        twin = keras.Sequential(
            [keras.Input((64,))]
            + [keras.layers.Dense(n) for n in (48, 32, 16, 32, 48, 64)]
        )
    else:
        model = convolutional(kernel_initializer="zeros")
        model.build((None, 8, 8, 1))
        twin = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(8, 3, 2, "same"),
                keras.layers.PReLU(shared_axes=[1, 2]),
                keras.layers.PReLU(shared_axes=[1, 2]),
                keras.layers.Conv2D(16, 3, 2, "same"),
                keras.layers.Conv2DTranspose(8, 3, 2, "same"),
                keras.layers.PReLU(shared_axes=[1, 2]),
                keras.layers.PReLU(shared_axes=[1, 2]),
                keras.layers.Conv2DTranspose(1, 3, 2, "same"),
            ]
        )
    assert model.count_params() <= 0.51 * twin.count_params()


@pytest.mark.parametrize(
    "make, shape", [(dense, (4, 6)), (convolutional, None)]
)
def test_saving(make, shape, tmp_path, own_compile):
    model = dense(5, 3, learned=True) if make is dense else convolutional()
    x = random(*(shape or (2, 7, 8, 1)))
    model.compile("adam", "mse")
    if make is dense:
        model.fit(x, epochs=1, verbose=0)
    else:
        model(x)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert len(again.weights) == len(model.weights)
    for ours, theirs in (
        (again(x), model(x)),
        (again.encode(x), model.encode(x)),
        (again.decode(model.encode(x)), model(x)),
    ):
        np.testing.assert_array_equal(array(ours), array(theirs))
    assert again.compiled and again.loss == "mse"


def test_mixed_precision_trains():
    x = random(16, 6)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense(6, 6, kernel_initializer=HALF)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        losses = model.fit(x, epochs=20, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all() and losses[-1] < 0.6 * losses[0]


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="must have a method `inverse`"):
        models.InvertibleAutoencoder([keras.layers.Dense(3)])
    conv = layers.InvertibleConv2D(4, 2, 2)
    conv.build((None, 7, 7, 1))
    model = models.InvertibleAutoencoder([conv])
    with pytest.raises(ValueError, match="does not restore the shape.*7, 7, 1"):
        model.build((None, 6, 7, 1))
    model = models.InvertibleAutoencoder([layers.InvertibleConv2D(4, 2, 2)])
    model.build((None, None, None, 1))
    with pytest.raises(ValueError, match="do not restore the size"):
        model(random(2, 7, 8, 1))
