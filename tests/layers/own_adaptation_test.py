"""What layers that adapt, retrieve and mix promise besides their equations."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import layers
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch


def value(y):
    return to_numpy([y])[0]


def stir(layer):
    rng = np.random.default_rng(0)
    for variable in layer.variables:
        variable.assign(variable + 0.3 * rng.normal(size=variable.shape))


@once
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "branches", [("parallel", "sequential"), ("parallel",), ("sequential",)]
)
def test_hydra_begins_as_its_layer_and_merges_into_it(branches, use_bias):
    x = batch(5, 6)
    dense = keras.layers.Dense(3, use_bias=use_bias)
    expected = value(dense(x))
    layer = layers.Hydra(
        dense, rank=2, scale=0.5, dropout=0.1, branches=branches
    )
    np.testing.assert_array_equal(value(layer(x)), expected)
    stir(layer)
    y = value(layer(x))
    merged = layer.merge()
    assert merged is dense
    for _ in range(2):
        np.testing.assert_allclose(value(dense(x)), y, atol=1e-5)
        np.testing.assert_allclose(value(layer(x)), y, atol=1e-5)
        layer.merge()


@once
def test_hydra_trains_its_branches_alone():
    x = batch(8, 6)
    layer = layers.Hydra(keras.layers.Dense(3), rank=2)
    model = keras.Sequential([keras.Input((6,)), layer])
    r, inputs, outputs = 2, 6, 3
    assert model.count_params() - inputs * outputs - outputs == (
        r * (inputs + 3 * outputs) + 2 * r + 2 * outputs
    )
    before = to_numpy(layer.layer.weights)
    y = value(model(x))
    model.compile("sgd", "mse")
    model.fit(x, batch(8, 3), epochs=3, verbose=0)
    for a, b in zip(to_numpy(layer.layer.weights), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(value(model(x)) - y).max() > 1e-3


@once
def test_codes_are_not_taken_for_kernels():
    x, h = batch(2, 6), batch(2, 3)
    hydra = layers.Hydra(keras.layers.Dense(6), rank=2)
    hyper = layers.HyperNetwork(keras.layers.Dense(6))
    norm, dense = layers.PRepBN(3), keras.layers.Dense(2)
    for layer, inputs in ((hydra, x), (hyper, [x, h]), (norm, x), (dense, x)):
        layer(inputs)
    for layer in (hydra.low_rank["sequential"][0], hyper.layer, dense):
        layer.quantize("int8")
    for use in (
        hydra.merge,
        lambda: hyper([x, h]),
        lambda: norm.fuse_into(dense),
    ):
        with pytest.raises(ValueError, match="is quantized"):
            use()


def convolutions():
    parts = []
    for _ in range(5):
        parts += [
            keras.layers.Conv2D(8, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(parts)


def adapted(kind):
    """Two parts of a network, trained in full or with blocks beside."""
    inputs = x = keras.Input((16, 16, 8), 4)
    for _ in range(2):
        part = convolutions()
        if kind == "recomputed":
            part = layers.Recompute(part)
        x = part(x) if kind == "full" else layers.EcoTTABlock(part)(x)
    return keras.Model(inputs, x)


def test_eco_tta_keeps_less_than_training_in_full():
    x = batch(4, 16, 16, 8)
    kept = {
        kind: saved_activation_bytes(adapted(kind), x)
        for kind in ("full", "blocks", "recomputed")
    }
    assert kept["blocks"] < 0.7 * kept["full"]
    assert kept["recomputed"] < 0.5 * kept["full"]


@once
def test_eco_tta_block_begins_as_the_norm_of_its_part():
    part = keras.layers.Conv2D(6, 3, strides=2, padding="same")
    block = layers.EcoTTABlock(part, regularization=0.0)
    x = batch(3, 8, 8, 4)
    y = value(block(x, training=True))
    norm = keras.layers.BatchNormalization()
    np.testing.assert_allclose(
        y, value(norm(part(x), training=True)), atol=1e-5
    )
    assert not part.trainable_variables
    with pytest.raises(ValueError, match="by whole numbers"):
        layers.EcoTTABlock(keras.layers.Conv2D(6, 3))(x)


@once
def test_outputs_of_a_hyper_network_do_not_follow_the_size_of_settings():
    x = np.ones((16, 8), "float32")
    h = np.repeat(np.linspace(0, 1, 16, dtype="float32")[:, None], 4, 1)
    slopes = {}
    for encoding in ("cos_sin", "none"):
        found = []
        for seed in range(16):
            keras.utils.set_random_seed(seed)
            # What comes from the settings: there is no W.
            dense = keras.layers.Dense(64, kernel_initializer="zeros")
            layer = layers.HyperNetwork(dense, (256,), encoding)
            variance = value(layer([x, h])).var(-1)
            found.append(np.polyfit(h[:, 0], variance, 1)[0] / variance.mean())
        slopes[encoding] = abs(np.mean(found))
    assert slopes["cos_sin"] < 0.2 < 1 < slopes["none"]


@once
def test_a_bottleneck_leaves_values_alone_that_are_not_looked_up():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype("float32")
    layer = layers.KeyValueBottleneck(3, 8, 4, 5)
    layer.adapt(x, batch_size=50, epochs=4)
    used = np.unique(value(layer.look_up(x))[:, 0])
    assert len(used) > 5  # keys are where data are
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    few = x[:4]
    looked_up = value(layer.look_up(few)) + 8 * np.arange(3)
    model.fit(few, np.ones((4, 4)), epochs=3, verbose=0)
    moved = np.any(value(layer.values) != 0, -1)
    np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(looked_up))


@once
def test_keys_move_to_the_means_of_what_is_near_them():
    centers = np.array([[4, 0], [-4, 0], [0, 4]], "float32")
    rng = np.random.default_rng(1)
    x = centers[rng.integers(3, size=900)]
    x = x + 0.1 * rng.normal(size=x.shape).astype("float32")
    layer = layers.KeyValueBottleneck(1, 3, 1, 2, decay=0.5)
    layer.build((None, 2))
    layer.projection.assign(np.eye(2)[None])
    layer.adapt(x[np.argsort(x[:, 0] + x[:, 1])], batch_size=100, epochs=5)
    keys = value(layer.keys)[0]
    nearest = np.linalg.norm(x[:, None] - keys, axis=-1).argmin(-1)
    means = [x[nearest == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(keys, means, atol=0.1)


@once
def test_one_step_of_hopfield_is_attention():
    x, stored = batch(2, 3, 8), 2 + batch(2, 6, 4)
    layer = layers.Hopfield(2, 5)
    y = value(layer(x, stored=stored))
    stir(layer)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], "bool")
    y = value(layer(x, stored=stored, stored_mask=mask))
    attention = keras.layers.MultiHeadAttention(2, 5)
    attention.build((2, 3, 8), (2, 6, 4), (2, 6, 4))
    parts = layer.query, layer.key, layer.value, layer.projection
    shapes = [variable.shape for variable in attention.weights]
    weights = [value(w) for part in parts for w in part.weights]
    attention.set_weights(
        [w.reshape(s) for w, s in zip(weights, shapes, strict=True)]
    )
    expected = attention(
        layer.state_norm(x),
        layer.stored_norm(stored),
        attention_mask=mask[:, None],
    )
    np.testing.assert_allclose(y, value(expected), atol=1e-5)


@once
def test_steps_and_a_larger_beta_find_single_patterns():
    rng = np.random.default_rng(0)
    patterns = rng.choice([-1.0, 1.0], (1, 1000, 32)).astype("float32")
    noisy = patterns[:, :20] + rng.normal(size=(1, 20, 32)).astype("float32")
    errors = []
    for beta, steps in ((0.05, 1), (0.5, 1), (0.5, 3)):
        layer = layers.Hopfield(1, 32, scaling=beta, update_steps=steps)
        layer.build(noisy.shape, patterns.shape)
        for dense in (layer.query, layer.key, layer.value, layer.projection):
            dense.kernel.assign(np.eye(32))
        found = value(layer(noisy, stored=patterns))
        # The norm of stored patterns is their value less the mean.
        expected = value(layer.stored_norm(patterns[:, :20]))
        errors.append(np.mean((found - expected) ** 2))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2


@once
def test_random_features_have_the_kernel_as_their_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 10)).astype("float32")
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    kernel = (unit @ unit.T + 0.5) ** 3
    for structured in (True, False):
        found = []
        for seed in range(40):
            layer = layers.CompactRandomFeatures(
                64, 3, 0.5, expansion=4, structured=structured, seed=seed
            )
            z = value(layer(x))
            found.append(z @ z.T)
            assert not layer.weights
        error = np.std(found, 0) / np.sqrt(40)
        assert np.all(np.abs(np.mean(found, 0) - kernel) < 4 * error + 1e-6)


@once
def test_pooling_in_the_place_of_a_convolution_and_of_attention():
    x = batch(2, 6, 6, 8)
    plain = layers.ConvNeXtBlock(3, layer_scale=1.0)
    pooled = layers.ConvNeXtBlock(3, layer_scale=1.0, mixer="max")
    plain(x), pooled(x)
    assert plain.count_params() - pooled.count_params() == 8 * 9 + 8
    lone = x.copy()
    lone[0, 0, 0] += 9.0
    changed = np.any(value(pooled(lone)) != value(pooled(x)), -1)[0]
    assert changed[:2, :2].any() and changed.sum() <= 4
    block = layers.ReversibleTransformerEncoder(
        12, 2, mixer="max", grid=(2, 3), normalization="peri"
    )
    tokens = batch(2, 6, 8)
    y1, y2 = block([tokens, 2 * tokens])
    again = to_numpy(block.inverse([y1, y2]))
    np.testing.assert_allclose(again[0], tokens, atol=1e-5)
    names = [variable.path for variable in block.trainable_variables]
    assert any("mixer" in name for name in names)
    assert not any("query" in name for name in names)
    same = type(block).from_config(block.get_config())
    assert same.get_config() == block.get_config()


def hourglass(reversible, blocks):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,), 32)
    run = [
        layers.AdditiveCoupling(layers.HourglassBlock(8, skip=False))
        for _ in range(blocks)
    ]
    run = layers.ReversibleSequence(run, reversible)
    return keras.Model(inputs, run([inputs, inputs])[0])


@once
def test_a_hourglass_block_has_a_skip_or_none():
    x = batch(4, 16)
    layer = layers.HourglassBlock(3)
    lone = layers.HourglassBlock(3, skip=False)
    y = value(layer(x))
    lone(x)
    lone.set_weights(layer.get_weights())
    np.testing.assert_allclose(y - x, value(lone(x)), atol=1e-6)


def test_a_reversible_run_frees_the_wide_skips_of_hourglass_blocks():
    x = batch(32, 64)
    kept = {
        (reversible, blocks): saved_activation_bytes(
            hourglass(reversible, blocks), x
        )
        for reversible in (True, False)
        for blocks in (2, 6)
    }
    growth = {r: kept[r, 6] - kept[r, 2] for r in (True, False)}
    assert growth[False] > 4 * x.nbytes  # the control: a skip a block
    assert growth[True] < growth[False] / 3


@once
@pytest.mark.parametrize(
    ("error", "make", "shape", "message"),
    [
        (TypeError, lambda: layers.Hydra(ops.relu), (2, 4), "must be a"),
        (
            ValueError,
            lambda: layers.Hydra(keras.layers.Dense(2, "relu")),
            (2, 4),
            "no activation",
        ),
        (
            ValueError,
            lambda: layers.Hydra(keras.layers.Dense(2), branches=("up",)),
            (2, 4),
            "must be some of",
        ),
        (
            ValueError,
            lambda: layers.Hydra(keras.layers.Dense(2, lora_rank=1)),
            (2, 4),
            "has LoRA",
        ),
        (TypeError, lambda: layers.EcoTTABlock(3), (2, 4), "must be a"),
        (TypeError, lambda: layers.HyperNetwork(3), (2, 4), "must be a"),
        (
            ValueError,
            lambda: layers.HyperNetwork(keras.layers.Dense(2)),
            (2, 4),
            "takes a list",
        ),
        (
            ValueError,
            lambda: layers.HyperNetwork(keras.layers.Dense(2), encoding="a"),
            (2, 4),
            "must be one of",
        ),
        (ValueError, lambda: layers.Hopfield(1, 2, 1.0, 0), (2, 4), "update_s"),
        (
            ValueError,
            lambda: layers.CompactRandomFeatures(0),
            (2, 4),
            "`units` must",
        ),
        (ValueError, lambda: layers.HourglassBlock(4), (2, 4), "less than"),
        (ValueError, lambda: layers.ConvNeXtBlock(mixer="a"), (2,), "mixer"),
        (
            ValueError,
            lambda: layers.ReversibleTransformerEncoder(4, 2, mixer="max"),
            (2, 4),
            "needs `grid`",
        ),
        (
            ValueError,
            lambda: layers.ReversibleTransformerEncoder(
                4, 2, mixer="max", grid=(2, 2)
            ),
            (2, 3, 4),
            "one patch for each",
        ),
    ],
)
def test_bad_arguments_are_refused(error, make, shape, message):
    with pytest.raises(error, match=message):
        make()(np.ones(shape, "float32"))
