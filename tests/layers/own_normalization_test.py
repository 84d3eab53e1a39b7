"""What normalization layers promise besides their equations."""

import keras
import numpy as np
import pytest

from keras_efficient import layers
from keras_efficient.utils import adapt_batch_norm
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import to_numpy
from tests.marks import once

IMAGE = np.random.default_rng(0).normal(1, 2, (6, 4, 4, 6)).astype("float32")


def value(y):
    return to_numpy([y])[0]


@once
@pytest.mark.parametrize(
    "make",
    [
        lambda axis: layers.EvoNorm(groups=3, axis=axis),
        lambda axis: layers.EvoNorm("B0", axis=axis),
        lambda axis: layers.InstanceBatchNormalization(axis=axis),
        lambda axis: layers.UnMixTNS(axis=axis),
    ],
)
def test_channels_may_come_first(make):
    first = value(make(1)(np.moveaxis(IMAGE, -1, 1), training=True))
    expected = value(make(-1)(IMAGE, training=True))
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), expected, atol=1e-5)


@once
def test_instance_batch_is_keras_layers_side_by_side():
    layer = layers.InstanceBatchNormalization()
    y = value(layer(IMAGE, training=True))
    instance = keras.layers.GroupNormalization(groups=3, epsilon=1e-3)
    batch = keras.layers.BatchNormalization()
    parts = instance(IMAGE[..., :3]), batch(IMAGE[..., 3:], training=True)
    np.testing.assert_allclose(
        y, np.concatenate(to_numpy(parts), -1), atol=1e-5
    )
    np.testing.assert_allclose(layer.moving_mean, batch.moving_mean, atol=1e-5)
    whole = layers.InstanceBatchNormalization(1.0)
    each = keras.layers.GroupNormalization(groups=6, epsilon=1e-3)
    np.testing.assert_allclose(
        value(whole(IMAGE)), value(each(IMAGE)), atol=1e-5
    )
    assert len(whole.weights) == 2


@once
def test_ada_b2n_of_equal_counts_is_batch_normalization():
    layer = layers.AdaB2N(3, kappa=0.0)
    plain = keras.layers.BatchNormalization()
    tasks = np.array([0, 1, 2, 0, 1, 2])
    y = value(layer([IMAGE, tasks], training=True))
    np.testing.assert_allclose(y, value(plain(IMAGE, training=True)), atol=1e-5)
    # `kappa=0` is the average of all steps.
    layer([2 * IMAGE, tasks], training=True)
    layer([6 * IMAGE, tasks], training=True)
    np.testing.assert_allclose(
        layer.moving_mean, 3 * IMAGE.mean((0, 1, 2)), rtol=1e-5
    )
    steady = layers.AdaB2N(3, kappa=1.0, momentum=0.8)
    for _ in range(2):
        steady([IMAGE, tasks], training=True)
        np.testing.assert_allclose(steady.eta, 0.2, rtol=1e-6)


def trained_norm():
    norm = keras.layers.BatchNormalization(momentum=0.0)
    norm(IMAGE, training=True)
    norm.gamma.assign(np.arange(1.0, 7.0))
    norm.beta.assign(np.ones(6))
    return norm


@once
@pytest.mark.parametrize(
    "layer",
    [
        lambda norm: layers.AlphaBN.from_batch_normalization(
            norm, target_weight=0.0
        ),
        lambda norm: layers.AlphaBN.from_batch_normalization(
            norm, target_weight=1.0
        ),
    ],
)
def test_alpha_bn_goes_from_the_source_to_the_batch(layer):
    norm = trained_norm()
    ours = layer(norm)
    other = 3 * IMAGE + 1
    training = ours.target_weight == 1.0
    expected = value(norm(other, training=training))
    np.testing.assert_allclose(value(ours(other)), expected, atol=1e-4)


@once
def test_unmix_starts_from_the_source():
    norm = trained_norm()
    one = layers.UnMixTNS.from_batch_normalization(norm, num_components=1)
    np.testing.assert_allclose(one.means[0], norm.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(
        one.variances[0], norm.moving_variance, rtol=1e-6
    )
    # One component takes all of each example.
    each = keras.layers.GroupNormalization(groups=6, epsilon=1e-3)
    expected = value(each(IMAGE)) * np.arange(1, 7) + 1
    np.testing.assert_allclose(value(one(IMAGE)), expected, atol=1e-4)
    many = layers.UnMixTNS.from_batch_normalization(norm, num_components=4000)
    total = value(many.variances).mean(0) + value(many.means).var(0)
    np.testing.assert_allclose(total, norm.moving_variance, rtol=0.1)


def test_unmix_moves_in_prediction():
    layer = layers.UnMixTNS(2)
    model = keras.Sequential([keras.Input((4, 4, 6)), layer])
    before = value(layer.means)
    model.predict(2 * IMAGE, verbose=0)
    assert np.any(value(layer.means) != before)


def kinds_of(model):
    """Classes of layers, of models inside, too."""
    kinds = []
    for layer in model.layers:
        inside = isinstance(layer, keras.Model)
        kinds += kinds_of(layer) if inside else [type(layer)]
    return kinds


@once
def test_adapt_batch_norm_replaces_what_it_can():
    inputs = keras.Input((4, 4, 6))
    inner = keras.Sequential(
        [keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization()]
    )
    x = keras.layers.Add()(
        [inputs, inner(keras.layers.ZeroPadding2D()(inputs))]
    )
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(3)(x))
    model = keras.Model(inputs, outputs)
    expected = model.predict(IMAGE, verbose=0)
    same = adapt_batch_norm(model, target_weight=0.0)
    kinds = kinds_of(same)
    assert kinds.count(layers.AlphaBN) == 2
    np.testing.assert_allclose(
        same.predict(IMAGE, verbose=0), expected, atol=1e-5
    )
    other = adapt_batch_norm(model, "unmix", num_components=4)
    kinds = kinds_of(other)
    assert kinds.count(layers.UnMixTNS) == 1
    assert kinds.count(keras.layers.BatchNormalization) == 1
    # The model goes on as it was.
    np.testing.assert_array_equal(model.predict(IMAGE, verbose=0), expected)
    with pytest.raises(ValueError, match="`method` must be one of"):
        adapt_batch_norm(model, "beta")
    with pytest.raises(ValueError, match="no BatchNormalization"):
        adapt_batch_norm(keras.Sequential([keras.Input((3,))]))


@once
def test_p_rep_bn_folds_into_the_layer_behind_it():
    layer = layers.PRepBN(decay_steps=2, warmup_steps=1)
    parts = []
    for _ in range(5):
        layer(IMAGE, training=True)
        parts.append(float(layer.layer_norm_part()))
    assert parts == [1.0, 0.5, 0.0, 0.0, 0.0]
    layer.a.assign(0.3)
    layer.batch_norm.beta.assign(np.arange(6.0))
    dense = keras.layers.Dense(3, "tanh")
    expected = value(dense(layer(IMAGE)))
    fused = layer.fuse_into(dense)
    np.testing.assert_allclose(value(fused(IMAGE)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="as many channels"):
        layer.fuse_into(built_dense(5))
    with pytest.raises(ValueError, match="must be built"):
        layer.fuse_into(keras.layers.Dense(3))


def built_dense(width):
    dense = keras.layers.Dense(3)
    dense.build((None, width))
    return dense


@once
def test_linear_attention_keeps_bytes_linear_in_tokens():
    growth = {}
    for name, make in {
        "ours": lambda n, x: layers.SimplifiedLinearAttention(2, (n, 16))(x),
        # Keras' own attention keeps no scores on PyTorch.
        "softmax": lambda n, x: layers.Hopfield(2, 4)(x),
    }.items():
        kept = []
        for n in (4, 16):
            inputs = keras.Input((16 * n, 8), 1)
            model = keras.Model(inputs, make(n, inputs))
            x = np.ones((1, 16 * n, 8), "float32")
            kept.append(saved_activation_bytes(model, x))
        few, many = kept
        growth[name] = many / few
    assert growth["ours"] < 4.5 < 8 < growth["softmax"]


@once
def test_evo_norm_recomputed_keeps_less_than_a_norm_and_an_activation():
    x = np.ones((8, 16, 16, 8), "float32")
    kept = []
    for middle in (
        [layers.Recompute(layers.EvoNorm(groups=4))],
        [keras.layers.GroupNormalization(4), keras.layers.Activation("silu")],
    ):
        ends = keras.layers.Conv2D(8, 1), keras.layers.Conv2D(8, 1)
        parts = [keras.Input(x.shape[1:]), ends[0], *middle, ends[1]]
        kept.append(saved_activation_bytes(keras.Sequential(parts), x))
    assert kept[0] < kept[1] - 0.9 * x.nbytes


@once
def test_peri_norm_makes_variances_grow_by_one_a_block():
    x = np.random.default_rng(0).normal(size=(2, 16, 64)).astype("float32")
    variances = {}
    for name in ("pre", "post", "peri"):
        streams = [x, x]
        for _ in range(8):
            streams = layers.ReversibleTransformerEncoder(
                64, 4, normalization=name
            )(streams)
        variances[name] = np.mean([y.var() for y in to_numpy(streams)])
    for name in ("post", "peri"):
        np.testing.assert_allclose(variances[name], 9.0, rtol=0.15)
    assert variances["pre"] < 6


@once
@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: layers.EvoNorm("A0"), (2, 4), '"S0" or "B0"'),
        (lambda: layers.EvoNorm(groups=4), (2, 6), "must divide"),
        (lambda: layers.EvoNorm(axis=0), (2, 6), "other than the batch"),
        (
            lambda: layers.InstanceBatchNormalization(2.0),
            (2, 4, 4),
            "in .0, 1.",
        ),
        (layers.InstanceBatchNormalization, (2, 4), "three axes"),
        (layers.UnMixTNS, (2, 4), "three axes"),
        (lambda: layers.UnMixTNS(0), (2, 4, 4), "at least 1"),
        (lambda: layers.AlphaBN(-1), (2, 4), "in .0, 1."),
        (lambda: layers.AdaB2N(2, kappa=2), (2, 4), "in .0, 1."),
        (lambda: layers.AdaB2N(2), (2, 4), "takes a list"),
        (lambda: layers.PRepBN(0), (2, 4), "at least 1"),
        (
            lambda: layers.SimplifiedLinearAttention(3, (2, 2)),
            (2, 4, 4),
            "must divide the width",
        ),
        (
            lambda: layers.SimplifiedLinearAttention(2, (2, 3)),
            (2, 4, 4),
            "one patch for each place",
        ),
    ],
)
def test_bad_arguments_are_refused(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make()(np.ones(shape, "float32"))
