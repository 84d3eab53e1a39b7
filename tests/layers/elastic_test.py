"""Layers with smaller ones inside: masked is sliced."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.callbacks import SubnetworkSampling
from keras_efficient.layers import ElasticConv2D
from keras_efficient.layers import ElasticDense
from tests.gradients import LAST
from tests.gradients import MODES
from tests.gradients import fit_mode
from tests.gradients import gradient_step
from tests.marks import once

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5)).astype("float32")
IMAGES = RNG.normal(size=(2, 7, 8, 4)).astype("float32")


def randomized(layer, x):
    layer.build(x.shape)
    for variable in layer.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    return layer


def output(layer, x):
    return ops.convert_to_numpy(layer(x))


def test_the_largest_is_the_plain_layer():
    dense = randomized(ElasticDense(6, "relu"), X)
    plain = keras.layers.Dense(6, "relu")
    plain.build(X.shape)
    plain.set_weights(dense.get_weights()[:2])
    np.testing.assert_array_equal(output(dense, X), output(plain, X))
    conv = ElasticConv2D(6, (5, 3), strides=2)
    conv.build(IMAGES.shape)
    plain = keras.layers.Conv2D(6, 5, 2, "same", data_format="channels_last")
    plain.build(IMAGES.shape)
    plain.set_weights([conv.get_weights()[0], conv.get_weights()[2]])
    np.testing.assert_allclose(
        output(conv, IMAGES), output(plain, IMAGES), atol=1e-6
    )
    conv.set_active(kernel_size=3)  # the unit matrix at first: its middle
    small = keras.layers.Conv2D(6, 3, 2, "same", data_format="channels_last")
    small.build(IMAGES.shape)
    small.set_weights([plain.get_weights()[0][1:4, 1:4], np.zeros(6)])
    np.testing.assert_allclose(
        output(conv, IMAGES), output(small, IMAGES), atol=1e-5
    )


@pytest.mark.parametrize("units, inputs", [(6, 5), (2, 5), (4, 3)])
def test_a_masked_dense_layer_is_what_it_exports(units, inputs):
    layer = randomized(ElasticDense(6, "tanh"), X)
    layer.set_active(units=units, inputs=inputs)
    small = layer.export()
    assert tuple(small.kernel.shape) == (inputs, units)
    found = output(layer, X)
    np.testing.assert_allclose(
        found[:, :units], output(small, X[:, :inputs]), atol=1e-6
    )
    np.testing.assert_array_equal(found[:, units:], 0 * found[:, units:])


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(7, 2, 4), (5, 6, 2), (3, 3, 3)])
def test_a_masked_convolution_is_what_it_exports(sizes, strides):
    size, filters, inputs = sizes
    layer = randomized(ElasticConv2D(6, strides=strides), IMAGES)
    layer.set_active(filters=filters, kernel_size=size, inputs=inputs)
    small = layer.export()
    assert tuple(small.kernel.shape) == (size, size, inputs, filters)
    found = output(layer, IMAGES)
    expected = output(small, IMAGES[..., :inputs])
    assert found.shape == layer.compute_output_shape(IMAGES.shape)
    np.testing.assert_allclose(
        found[..., :filters], expected, atol=1e-4 * np.abs(expected).max()
    )
    assert (found[..., filters:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_active_changes_without_a_new_program(mode):
    layer = randomized(ElasticConv2D(3, (3, 1)), IMAGES)
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layer])
    step = gradient_step(model, mode)
    whole = step([IMAGES])[2]
    layer.set_active(filters=1, kernel_size=1, inputs=2)
    (y,), _, part = step([IMAGES])
    assert np.abs(y[..., :1]).max() > 0 and (y[..., 1:] == 0).all()
    kernel, transform, bias = part
    assert np.abs(whole[0]).min() > 0
    assert (kernel[1, 1, :2, 0] != 0).all()
    kernel[1, 1, :2, 0] = 0
    assert (kernel == 0).all() and (bias[1:] == 0).all()
    assert (transform != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_it_trains_at_random_sizes_and_is_saved(dtype, tmp_path):
    conv = ElasticConv2D(4, (5, 3), dtype=dtype)
    dense = ElasticDense(2, dtype=dtype)
    model = keras.Sequential(
        [
            keras.Input(IMAGES.shape[1:]),
            conv,
            keras.layers.GlobalAveragePooling2D(dtype=dtype),
            dense,
        ]
    )

    seen = []

    def choose(random):
        filters = int(random.integers(1, 5))
        seen.append(filters)
        conv.set_active(filters, kernel_size=int(random.choice([3, 5])))
        dense.set_active(inputs=filters)

    class Look(keras.callbacks.Callback):
        """What a step ran with is what was chosen before it."""

        def on_epoch_end(self, epoch, logs=None):
            assert int(ops.convert_to_numpy(conv.active_outputs)) == seen[-1]

    model.compile(keras.optimizers.Adam(0.02), "mse", **fit_mode(LAST))
    goals = RNG.normal(size=(2, 2))
    sampling = SubnetworkSampling(choose)
    losses = model.fit(
        IMAGES, goals, 1, epochs=12, verbose=0, callbacks=[sampling, Look()]
    ).history["loss"]
    assert np.isfinite(losses).all() and min(losses) < losses[0]
    assert len(set(seen)) == 4
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict(IMAGES, verbose=0),
        model.predict(IMAGES, verbose=0),
        atol=1e-6,
    )


def test_a_choice_is_not_lost_between_steps():
    """On JAX it would be; elsewhere it is not."""
    layer = ElasticDense(4)
    model = keras.Sequential([keras.Input((5,)), layer])
    model.compile("sgd", "mse")
    errors, outputs = [], []

    class Assign(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            try:
                layer.set_active(units=1)
            except RuntimeError as error:
                errors.append(str(error))

        def on_epoch_end(self, epoch, logs=None):
            outputs.append(int(ops.convert_to_numpy(layer.active_outputs)))

    model.fit(X, X[:, :4], 1, verbose=0, callbacks=[Assign()])
    if keras.config.backend() == "jax":
        assert "jax_state_sync" in errors[0] and outputs == [4]
    else:
        assert not errors and outputs == [1]


@once
def test_bad_arguments_are_told():
    dense = randomized(ElasticDense(6), X)
    conv = randomized(ElasticConv2D(6, (5, 3)), IMAGES)
    for layer, settings in (
        (dense, {"units": 0}),
        (dense, {"inputs": 6}),
        (conv, {"filters": 7}),
        (conv, {"kernel_size": 7}),
        (conv, {"inputs": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            layer.set_active(**settings)
    for settings in (
        {"filters": 0},
        {"kernel_sizes": (3, 5)},
        {"kernel_sizes": (4,)},
        {"strides": 4},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ElasticConv2D(**{"filters": 2, **settings})
    with pytest.raises(ValueError, match="units"):
        ElasticDense(0)
    with pytest.raises(TypeError, match="choose"):
        SubnetworkSampling([1, 2])
    for layer in (dense, conv):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()
