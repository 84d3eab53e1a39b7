"""A convolution and its batch normalization as one: layer and conversion."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient import recompute
from keras_efficient.layers import ConvBN
from keras_efficient.utils import adapt_batch_norm
from keras_efficient.utils import merge_batch_norm
from keras_efficient.utils import saved_activation_bytes
from keras_efficient.utils import to_tune_mode
from tests.gradients import LAST
from tests.gradients import gradients
from tests.marks import once
from tests.twins import batch

PAIRS = {
    "Conv1D": (lambda: layers.Conv1D(3, 3), {}, (6, 2)),
    "Conv2D": (
        lambda: layers.Conv2D(3, 3, strides=2, use_bias=False),
        {"scale": False},
        (6, 6, 2),
    ),
    "Conv3D": (lambda: layers.Conv3D(3, 2), {"center": False}, (4, 4, 4, 2)),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        {},
        (6, 6, 2),
    ),
    "DepthwiseConv1D": (
        lambda: layers.DepthwiseConv1D(3, use_bias=False),
        {},
        (6, 2),
    ),
    "groups": (lambda: layers.Conv2D(4, 3, groups=2), {}, (6, 6, 2)),
}
if keras.config.backend() == "tensorflow":  # has no such gradient on the CPU
    del PAIRS["groups"]


def stir(model):
    """Move what begins at 0 or 1, to values that variances may have."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "seed" not in variable.path:
            noise = np.abs(rng.normal(size=variable.shape)) / 2
            variable.assign(variable + noise.astype(variable.dtype))


@pytest.mark.parametrize("name", PAIRS)
def test_tune_mode_is_eval_mode(name):
    """Outputs and all gradients; the statistics stay."""
    make, options, shape = PAIRS[name]
    inputs = keras.Input(shape)
    layer = ConvBN(make(), layers.BatchNormalization(**options), mode="eval")
    model = keras.Model(inputs, layer(inputs))
    stir(model)
    x = [batch(4, *shape)]
    before = model.get_weights()
    expected = gradients(model, x, LAST)
    layer.mode = "tune"
    actual = gradients(model, x, LAST)
    for a, b in zip(sum(actual, []), sum(expected, []), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def network(blocks=4, width=8):
    """Pairs, and convolutions that are none: read twice, or activated."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, width))
    x = inputs
    for _ in range(blocks):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(width, 1)(x)
    x = layers.Add()([layers.BatchNormalization()(y), y])
    x = layers.Conv2D(width, 1, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    stir(model)
    return model


def hold(model):
    """Fix all statistics, as one may by hand."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            if "call" not in vars(layer):
                call = functools.partial(_held, layer.call)
                vars(layer)["call"] = call
    return model


def _held(call, x, training=None, mask=None):
    return call(x, training=False)


def test_to_tune_mode_in_place():
    """Outputs and gradients of fixed statistics, recomputed too; and back."""
    x = [batch(4, 16, 16, 8)]
    model = network()
    names = [v.path.split("/", 1)[-1] for v in model.variables]
    expected = gradients(hold(network()), x, LAST)
    assert to_tune_mode(model) == to_tune_mode(model) == 4
    hold(model)
    for wrap in (lambda model: model, lambda model: recompute(model)):
        actual = gradients(wrap(model), x, LAST)
        for a, b in zip(sum(actual, []), sum(expected, []), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    assert [v.path.split("/", 1)[-1] for v in model.variables] == names
    recompute(model, None)
    assert to_tune_mode(model, tune=False) == 4
    convolutions = [x for x in model.layers if isinstance(x, layers.Conv2D)]
    assert not any("call" in vars(layer) for layer in convolutions)


@once
def test_merged_model_is_a_plain_one(tmp_path):
    """The same outputs, from a file of Keras, too; the model stays."""
    x = batch(4, 16, 16, 8)
    model = network()
    expected, before = model.predict(x, verbose=0), model.get_weights()
    to_tune_mode(model)
    with pytest.raises(ValueError, match="is in tune mode"):
        adapt_batch_norm(model)
    merged = merge_batch_norm(model)
    kinds = [type(layer).__name__ for layer in merged.layers]
    assert kinds.count("Identity") == 4
    assert kinds.count("BatchNormalization") == 2
    merged.save(tmp_path / "merged.keras")
    loaded = keras.models.load_model(tmp_path / "merged.keras")
    for found in (merged, loaded, model):
        y = found.predict(x, verbose=0)
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=tolerance)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    depthwise = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.Sequential(
                [
                    layers.DepthwiseConv2D(3, depth_multiplier=2),
                    layers.BatchNormalization(),
                ]
            ),
        ]
    )
    stir(depthwise)
    x = batch(2, 6, 6, 2)
    merged = merge_batch_norm(depthwise)
    assert len(merged.get_weights()) == 2
    y = [ops.convert_to_numpy(m(x)) for m in (merged, depthwise)]
    np.testing.assert_allclose(*y, rtol=1e-4, atol=1e-5)


@once
def test_pairs_of_models_inside_and_in_mixed_precision():
    inputs = keras.Input((8, 8, 3))
    policy = {"dtype": "mixed_bfloat16"}
    inner = keras.Sequential(
        [
            layers.Conv2D(4, 3, **policy),
            layers.BatchNormalization(**policy),
            layers.ReLU(**policy),
        ]
    )
    shared = layers.Conv2D(4, 1, **policy)
    x = shared(inner(inputs))
    x = layers.BatchNormalization(**policy)(shared(x))  # called twice: none
    model = keras.Model(inputs, x)
    stir(model)
    x = batch(2, 8, 8, 3)
    expected = ops.convert_to_numpy(model(x)).astype("float32")
    assert to_tune_mode(model) == 1
    y = model(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    y = ops.convert_to_numpy(y).astype("float32")
    np.testing.assert_allclose(y, expected, atol=0.05 * np.abs(expected).max())


@once
def test_what_is_kept_is_one_map_less_a_pair():
    """(The last normalizations, which are no pairs, are kept out.)"""
    x = batch(8, 16, 16, 8)
    kept = {}
    for blocks in (2, 4):
        for tune in (False, True):
            layers_ = []
            for _ in range(blocks):
                conv = layers.Conv2D(8, 3, padding="same")
                mode = "tune" if tune else "eval"
                layers_ += [
                    ConvBN(conv, layers.BatchNormalization(), mode),
                    layers.ReLU(),
                ]
            model = keras.Sequential([keras.Input((16, 16, 8)), *layers_])
            kept[blocks, tune] = saved_activation_bytes(model, x) / x.nbytes
    for blocks in (2, 4):
        saved = kept[blocks, False] - kept[blocks, True]
        np.testing.assert_allclose(saved, blocks, atol=0.1)


@once
def test_what_is_no_pair_is_refused():
    bn = layers.BatchNormalization
    for conv, normalization, match in (
        (layers.Conv2D(3, 1, activation="relu"), bn(), "activation between"),
        (layers.Conv2D(3, 1), bn(axis=1), "not over channels"),
        (layers.Conv2DTranspose(3, 1), bn(), "no convolution without"),
        (layers.Conv2D(3, 1), layers.LayerNormalization(), "is not `Batch"),
        (layers.Conv2D(3, 1), bn(renorm=True), "`renorm` has"),
    ):
        with pytest.raises(ValueError, match=match):
            ConvBN(conv, normalization)
    with pytest.raises(ValueError, match="`mode` must be"):
        ConvBN(layers.Conv2D(3, 1), bn(), mode="deploy")
    with pytest.raises(TypeError, match="`model` must be"):
        to_tune_mode(layers.Dense(1))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="has no convolution"):
        to_tune_mode(model)
