"""The vision transformer and the language model, small."""

import keras
import numpy as np
import pytest

from keras_efficient import models
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import GRAPH
from tests.gradients import fit_mode
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.layers.reversible_transformer_test import Reference
from tests.layers.reversible_transformer_test import fill
from tests.layers.reversible_transformer_test import scatter
from tests.marks import first
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors

TOKENS = np.random.default_rng(5).integers(0, 11, (2, 6)).astype("int32")


def vit(reversible=True, depth=2, **arguments):
    keras.utils.set_random_seed(7)
    arguments = {"input_shape": (4, 6, 3), "classes": 3, **arguments}
    return models.ReversibleViT(
        depth, 2, 8, 12, patch_size=2, reversible=reversible, **arguments
    )


def language_model(reversible=True, depth=2, **arguments):
    keras.utils.set_random_seed(7)
    return models.ReversibleCausalLM(
        11, depth, 4, 8, 12, reversible=reversible, **arguments
    )


def gelu_reference(block):
    reference = Reference(block)

    def feed_forward(x):
        layer = block.feed_forward
        y = reference.dense(layer.expansion, reference.norm(layer.norm, x))
        y = to_numpy([keras.activations.gelu(y)])[0]
        return reference.dense(layer.projection, y)

    reference.feed_forward = feed_forward
    return reference


@pytest.mark.parametrize("pool_first", first(True, False))
def test_vit_computes_what_numpy_does(pool_first):
    model = vit(classifier_activation=None, pool_first=pool_first)
    fill(model)
    images = batch(2, 4, 6, 3)
    kernel, bias = to_numpy(model.get_layer("patches").weights)
    x = images.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(2, 6, 12) @ kernel.reshape(12, 8) + bias
    x1 = x2 = x + to_numpy(model.get_layer("positions").weights)[0]
    for block in model.get_layer("blocks").blocks:
        x1, x2 = gelu_reference(block)(x1, x2, np.ones((2, 6, 6), "bool"))
    x = np.concatenate([x1, x2], axis=-1)
    norm = model.get_layer("norm")
    x = x.mean(1) if pool_first else x
    x = Reference(None).norm(norm, x)
    x = x if pool_first else x.mean(1)
    expected = Reference(None).dense(model.get_layer("predictions"), x)
    y = model.predict(images, verbose=0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", first(9, None))
def test_language_model_computes_what_numpy_does(positions):
    model = language_model(num_key_value_heads=2, max_sequence_length=positions)
    fill(model)
    stack = model.stack
    (table,) = to_numpy(stack.token_embedding.weights)
    x = table[TOKENS]
    if positions:
        x = x + to_numpy(stack.positions.weights)[0][:6]
    x1 = x2 = x
    causal = np.tril(np.ones((2, 6, 6), "bool"))
    for block in stack.run.blocks:
        reference = gelu_reference(block)
        y1 = x1 + reference.attention(x2, causal)
        x1, x2 = y1, x2 + reference.feed_forward(y1)
    expected = Reference(None).norm(stack.norm, x1 + x2) @ table.T
    y = model.predict(TOKENS, verbose=0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_blocks_of_a_vit_are_inverted():
    run = vit(include_top=False).get_layer("blocks")
    x = [batch(2, 6, 8), batch(2, 6, 8)[::-1]]
    again = to_numpy(run.inverse(run(x)))
    for ours, theirs in zip(again, x, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_of_a_vit_equal_those_of_the_plain_twin():
    results = []
    for reversible in (True, False):
        model = vit(reversible, dropout=0.2)
        fill(model)
        keras.utils.set_random_seed(1)
        results.append(gradients(model, [batch(2, 4, 6, 3)]))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4


def test_fit_of_a_language_model_equals_that_of_the_plain_twin():
    histories, weights = [], []
    tokens = (np.arange(48)[:, None] + np.arange(7)) % 11  # to be learnt
    for reversible in (True, False):
        model = language_model(reversible, dropout=0.1)
        fill(model)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **fit_mode(GRAPH),
        )
        keras.utils.set_random_seed(1)
        history = model.fit(
            tokens[:, :-1],
            tokens[:, 1:],
            16,
            epochs=4,
            shuffle=False,
            verbose=0,
        )
        histories.append(history.history["loss"])
        weights.append(to_numpy(model.weights))
    assert histories[0][-1] < 0.9 * histories[0][0]
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert max(relative_errors(*weights)) < 1e-3


INPUTS = {
    vit: np.ones((64, 4, 6, 3), "float32"),
    language_model: np.ones((64, 6), "int32"),
}


@once  # on each backend tests of runs ask
@pytest.mark.parametrize("build", INPUTS, ids=lambda f: f.__name__)
def test_bytes_kept_do_not_grow_with_depth(build):
    few, many, plain_few, plain_many = (
        saved_activation_bytes(build(reversible, depth), INPUTS[build])
        for reversible in (True, False)
        for depth in (2, 4)
    )
    assert plain_many > 1.6 * plain_few
    assert many - few < 0.03 * (plain_many - plain_few)
    assert 2 * 64 * 6 * 8 * 4 <= few < plain_few


@pytest.mark.parametrize("build", first(language_model, vit))
def test_mixed_precision_and_saving(build, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(depth=1)
    finally:
        keras.config.set_dtype_policy("float32")
    x = INPUTS[build][:4]
    y = np.zeros((4, 6) if build is language_model else 4, "int32")
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=build is language_model
    )
    model.compile("adam", loss)
    losses = model.fit(x, y, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(v.dtype == "float32" for v in model.weights)
    # The policy is that of the model, not the one at the time of loading.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    blocks = [*loaded._flatten_layers()]
    dtypes = {b.compute_dtype for b in blocks if b.name == "projection"}
    assert dtypes == {"bfloat16"}


def test_weights_serve_both_twins_and_a_clone(tmp_path):
    path = tmp_path / "vit.weights.h5"
    model = vit(depth=1)
    fill(model)
    model.save_weights(path)
    x = batch(2, 4, 6, 3)
    plain = vit(False, depth=1, weights=path)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    model = language_model(depth=1)
    clone = keras.models.clone_model(model)
    # Tied in the clone, too: a variable less than layers that use it.
    assert len(clone.weights) == len(model.weights)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        clone.predict(TOKENS, verbose=0), model.predict(TOKENS, verbose=0)
    )


@once
def test_stochastic_depth_of_a_vit_grows_with_depth():
    blocks = vit(depth=3, drop_rate=0.2).get_layer("blocks").blocks
    np.testing.assert_allclose([b.drop_rate for b in blocks], [0, 0.1, 0.2])
    assert all(b.layer_norm_epsilon == 1e-6 for b in blocks)


@once
@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_features_of_a_vit(pooling):
    model = vit(include_top=False, pooling=pooling)
    assert model.output_shape == (None, *([] if pooling else [6]), 16)
    tokens = keras.Model(model.input, model.get_layer("norm").output)
    if pooling:
        x = batch(2, 4, 6, 3)
        reduce = {"avg": np.mean, "max": np.max}[pooling]
        expected = reduce(tokens.predict(x, verbose=0), axis=1)
        y = model.predict(x, verbose=0)
        np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize(
    "build, parameters",
    [
        (models.ReversibleViTTiny, 5_909_416),
        (models.ReversibleViTSmall, 22_434_664),
        (models.ReversibleViTBase, 87_335_656),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@once
def test_vit_sizes(build, parameters, monkeypatch):
    zeros = keras.initializers.Zeros()  # large models: no random numbers
    for name in ("GlorotUniform", "TruncatedNormal"):
        kind = getattr(keras.initializers, name)
        monkeypatch.setattr(
            kind, "__call__", lambda self, *a, **k: zeros(*a, **k)
        )
    model = build()
    width = model.get_layer("patches").filters
    block = 4 * width * (width + 1) + 4 * width  # attention, two norms
    block += 2 * width * 4 * width + 5 * width
    ends = 16 * 16 * 3 * width + width + 196 * width + 4 * width
    assert parameters == 12 * block + ends + (2 * width + 1) * 1000
    assert model.count_params() == parameters
    assert model.output_shape == (None, 1000)


@pytest.mark.parametrize("positions", first(None, 12))
def test_cached_generation_equals_greedy_decoding(positions):
    model = language_model(num_key_value_heads=2, max_sequence_length=positions)
    scatter(model)
    ours = to_numpy([model.generate(TOKENS, 6)])[0]
    tokens = TOKENS
    for length in range(6, 12):
        # Of one length, for one program: what comes later has no influence.
        padded = np.pad(tokens, [(0, 0), (0, 12 - length)])
        logits = model.predict(padded, verbose=0)[:, length - 1]
        following = logits.argmax(-1).astype("int32")[:, None]
        tokens = np.concatenate([tokens, following], axis=1)
    np.testing.assert_array_equal(ours, tokens)
    assert len(np.unique(tokens[:, 6:])) > 2


def test_tokens_are_drawn_from_the_predicted_distribution():
    model = language_model()
    fill(model)
    prompt = np.repeat(TOKENS[:1], 2000, axis=0)
    drawn = to_numpy([model.generate(prompt, 1, 1.0, seed=0)])[0][:, -1]
    counts = np.bincount(drawn, minlength=11) / 2000
    logits = model.predict(TOKENS[:1], verbose=0)[0, -1]
    p = np.exp(logits - logits.max())
    np.testing.assert_allclose(counts, p / p.sum(), atol=0.04)


@once
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="must be None, 'avg' or 'max'"):
        vit(pooling="mean")
    with pytest.raises(ValueError, match="must be fixed.*Received: input_sh"):
        vit(input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="2 divides"):
        vit(input_shape=(5, 4, 3))
    with pytest.raises(ValueError, match="has 4 positions"):
        language_model(max_sequence_length=4).predict(TOKENS, verbose=0)
    with pytest.raises(ValueError, match="has 6 positions.*sequence of 7"):
        language_model(max_sequence_length=6).generate(TOKENS, 1)
