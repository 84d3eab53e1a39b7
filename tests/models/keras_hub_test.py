"""The models for KerasHub, from small configurations: nothing is downloaded."""

import importlib
import sys

import keras
import numpy as np
import pytest

from keras_efficient import models
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.layers.reversible_transformer_test import fill
from tests.layers.reversible_transformer_test import scatter
from tests.marks import first
from tests.marks import once
from tests.package_test import FILES
from tests.package_test import imports
from tests.twins import batch
from tests.twins import relative_errors

keras_hub = pytest.importorskip("keras_hub")
from keras_efficient.models import hub  # noqa: E402

# Given tokens of unequal number; zeros are to be written.
PROMPT = {
    "token_ids": np.array([[5, 7, 2, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0]]),
    "padding_mask": np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]]),
}
FULL = {
    "token_ids": np.random.default_rng(0).integers(0, 11, (4, 7)),
    "padding_mask": np.array([[1] * 7, [1] * 5 + [0] * 2] * 2),
}


def reversible_backbone(**arguments):
    return hub.ReversibleBackbone(11, 2, 4, 8, 12, **arguments)


def gpt2(depth=2, **arguments):
    return keras_hub.models.GPT2Backbone(
        11, depth, 2, 8, 12, 0.0, max_sequence_length=7, **arguments
    )


def bert(depth=2, **arguments):
    return keras_hub.models.BertBackbone(
        11, depth, 2, 8, 12, 0.0, max_sequence_length=7, **arguments
    )


def converted_gpt2():
    return hub.to_reversible(gpt2(), 0.5)


SIZES = {
    "vocabulary_size": 11,
    "num_layers": 3,
    "hidden_dim": 8,
    "intermediate_dim": 12,
}
HEADS = {"num_query_heads": 4, "num_key_value_heads": 2}


def llama():
    return keras_hub.models.LlamaBackbone(**SIZES, **HEADS)


def gemma3():
    return keras_hub.models.Gemma3Backbone(
        image_size=16, head_dim=4, **SIZES, **HEADS
    )


def opt():
    return keras_hub.models.OPTBackbone(
        num_heads=2, max_sequence_length=7, dropout=0.0, **SIZES
    )


def roberta():
    return keras_hub.models.RobertaBackbone(
        num_heads=2, max_sequence_length=7, dropout=0.0, **SIZES
    )


def vit():
    return keras_hub.models.ViTBackbone((8, 8, 3), 4, 3, 2, 8, 12)


def inputs_of(backbone):
    """Return a batch of four for a backbone."""
    if not isinstance(backbone.input, dict):
        return batch(4, 8, 8, 3)
    others = {"segment_ids": FULL["token_ids"] % 2}
    return {name: {**FULL, **others}[name] for name in backbone.input}


def outputs_of(model, inputs):
    y = model.predict(inputs, verbose=0)
    return y["sequence_output"] if isinstance(y, dict) else y


def converted_llama():
    return hub.to_reversible(llama(), 0.5)


def converted_gemma3():
    return hub.to_reversible(gemma3(), 0.5)


def converted_opt():
    return hub.to_reversible(opt(), 0.5)


def test_only_the_module_for_it_imports_keras_hub():
    for path in FILES:
        # `memory_report` imports it where KerasHub has been imported before.
        inside = "models/hub/" in path.as_posix()
        inside = inside or path.name == "memory_report.py"
        found = [name for name in imports(path) if "hub" in name]
        assert inside or not found, path


def test_the_error_without_keras_hub_names_the_extra(monkeypatch):
    name = "keras_efficient.models.hub"
    for module in [m for m in sys.modules if m.startswith(name)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(models, "hub")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install keras-efficient\[nlp"):
        importlib.import_module(name)


def test_the_network_is_that_of_the_plain_keras_model():
    model = hub.ReversibleCausalLM(reversible_backbone())
    scatter(model)
    plain = models.ReversibleCausalLM(11, 2, 4, 8, 12)
    plain.set_weights(model.get_weights())
    tokens = FULL["token_ids"]
    everywhere = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    np.testing.assert_allclose(
        model.predict(everywhere, verbose=0),
        plain.predict(tokens, verbose=0),
        atol=1e-5,
    )
    # What is masked has no influence on what is not.
    left = {"token_ids": tokens.copy(), "padding_mask": np.ones_like(tokens)}
    left["padding_mask"][:, :2] = 0
    expected = model.predict(left, verbose=0)
    left["token_ids"][:, :2] = (tokens[:, :2] + 1) % 11
    y = model.predict(left, verbose=0)
    np.testing.assert_allclose(y[:, 2:], expected[:, 2:], atol=1e-6)
    assert np.max(np.abs(y[:, :2] - expected[:, :2])) > 0.01


@pytest.mark.parametrize(
    "build",
    first(
        reversible_backbone,
        converted_gemma3,  # keys and values apart, more than the width
        converted_gpt2,
        converted_llama,  # fewer heads for keys and values
        converted_opt,  # positions and tokens in one layer
        number=2,
    ),
)
def test_generation_equals_greedy_decoding_without_a_cache(build, tmp_path):
    model = hub.ReversibleCausalLM(build())
    scatter(model)
    model.compile(sampler="greedy")
    ours = model.generate(dict(PROMPT), stop_token_ids=None)["token_ids"]
    tokens, given = PROMPT["token_ids"].copy(), PROMPT["padding_mask"] == 1
    for place in range(3, 7):
        inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
        logits = model.predict(inputs, verbose=0)[:, place - 1]
        tokens[:, place] = np.where(
            given[:, place], tokens[:, place], logits.argmax(-1)
        )
    np.testing.assert_array_equal(ours, tokens)
    assert len(np.unique(tokens[:, 4:])) > 2
    if build is not reversible_backbone:  # saved below
        # From the first of the tokens that ends a sequence on, nothing counts.
        stop = int(tokens[0, 4])
        ended = model.generate(dict(PROMPT), stop_token_ids=(stop,))
        last = 3 + list(tokens[0, 3:]).index(stop)
        np.testing.assert_array_equal(
            ended["padding_mask"][0], np.arange(7) <= last
        )
        return
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is hub.ReversibleCausalLM
    np.testing.assert_array_equal(
        loaded.predict(FULL, verbose=0), model.predict(FULL, verbose=0)
    )


@once
def test_strings_go_in_and_come_out():
    tokenizer = keras_hub.models.GPT2Tokenizer(
        # Zero is for padding.
        dict(zip(["!", "a", "b", "Ġ", "Ġa", "Ġb", "<|endoftext|>"], range(7))),
        merges=["Ġ a", "Ġ b"],
    )
    model = hub.ReversibleCausalLM(
        hub.ReversibleBackbone(11, 1, 4, 16, 32),
        keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, 7),
    )
    sampler = keras_hub.samplers.BeamSampler(num_beams=2)
    model.compile(keras.optimizers.Adam(0.03), sampler=sampler)
    model.fit(["a b a b a"] * 160, batch_size=8, verbose=0)
    assert model.generate(["a b", "a b a"]) == ["a b a b a"] * 2


def converted_in_steps(backbone, embedded, momentum, mask):
    """The equations of `to_reversible`, one layer of KerasHub at a time."""
    x, v = embedded, np.zeros_like(embedded)
    for layer in backbone.transformer_layers:
        y = to_numpy([layer(x, **{mask: FULL["padding_mask"]})])[0]
        v = momentum * v + (1 - momentum) * (y - x)
        x = x + v
    return x, v


def test_a_converted_gpt2_computes_its_equations():
    backbone = gpt2()
    fill(backbone)
    converted = hub.to_reversible(backbone, 0.5)
    assert {id(v) for v in converted.trainable_weights} == {
        id(v) for v in backbone.weights
    }
    for block in converted.get_layer("transformer_layers").blocks:
        block.momentum.assign(0.4)
    tokens = FULL["token_ids"]
    embedded = to_numpy([backbone.token_embedding(tokens)])[0]
    table = to_numpy(backbone.position_embedding.weights)[0]
    x, v = converted_in_steps(
        backbone, embedded + table, 0.4, "decoder_padding_mask"
    )
    expected = to_numpy([backbone.layer_norm(x + 0.4 / 0.6 * v)])[0]
    y = converted.predict(FULL, verbose=0)
    np.testing.assert_allclose(y, expected, atol=1e-4)


@once
def test_a_converted_bert_computes_its_equations_and_is_fine_tuned():
    backbone = bert()
    fill(backbone)
    inputs = {**FULL, "segment_ids": FULL["token_ids"] % 2}
    converted = hub.to_reversible(backbone, 0.4)
    before = keras.Model(backbone.input, backbone.embeddings_dropout.output)
    embedded = before.predict(inputs, verbose=0)
    x, _ = converted_in_steps(backbone, embedded, 0.4, "padding_mask")
    y = converted.predict(inputs, verbose=0)
    np.testing.assert_allclose(y["sequence_output"], x, atol=1e-4)
    pooled = to_numpy([backbone.pooled_dense(x[:, 0])])[0]
    np.testing.assert_allclose(y["pooled_output"], pooled, atol=1e-4)

    model = keras_hub.models.BertTextClassifier(converted, num_classes=2)
    model.compile(keras.optimizers.Adam(0.01), model.loss)
    labels = np.array([0, 1, 1, 0])
    losses = model.fit(inputs, labels, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "build", first(vit, gpt2, bert, llama, gemma3, opt, roberta)
)
def test_less_momentum_is_closer_to_the_original(build):
    backbone = build()
    fill(backbone)
    inputs = inputs_of(backbone)
    expected = outputs_of(backbone, inputs)
    distances = []
    for momentum in (1e-3, 0.1, 0.5):
        converted = hub.to_reversible(backbone, momentum)
        y = outputs_of(converted, inputs)
        distances.append(np.linalg.norm(y - expected))
        assert {id(v) for v in converted.trainable_weights} == {
            id(v) for v in backbone.trainable_weights
        }
    assert distances[0] < 0.01 * np.linalg.norm(expected)
    assert distances == sorted(distances)


@pytest.mark.parametrize("build", first(gemma3, vit))
def test_a_whole_converted_backbone_has_the_gradients_of_its_twin(build):
    backbone = build()
    fill(backbone)
    inputs = inputs_of(backbone)
    steps = []
    for reversible in (True, False):
        start = backbone.get_weights()
        model = hub.to_reversible(backbone, 0.5, reversible)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        targets = batch(4, 7 if build is gemma3 else 5, 8)
        model.fit(inputs, targets, epochs=1, batch_size=4, verbose=0)
        steps.append(backbone.get_weights())
        backbone.set_weights(start)
    for ours, theirs in zip(*steps):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    moved = [np.max(np.abs(x - y)) for x, y in zip(steps[0], start)]
    assert sum(x > 0 for x in moved) >= 3 * 9


@pytest.mark.parametrize("build", first(llama, vit))
def test_lora_before_and_after_the_conversion_and_saving(build, tmp_path):
    backbone = build()
    fill(backbone)
    if build is llama:
        backbone.enable_lora(2)
    converted = hub.to_reversible(backbone, 0.5)
    if build is vit:
        converted.enable_lora(2)
    few = [v for v in converted.trainable_variables if "lora" in v.path]
    assert len(few) == 3 * 2 * 2
    for v in few:
        v.assign(0.1 * np.ones(v.shape))
    inputs = inputs_of(backbone)
    converted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        outputs_of(loaded, inputs), outputs_of(converted, inputs), atol=1e-4
    )


def test_gradients_of_a_converted_backbone_equal_those_of_its_twin():
    backbone = gpt2()
    fill(backbone)
    results = []
    for reversible in (True, False):
        converted = hub.to_reversible(backbone, 0.5, reversible)
        run = converted.get_layer("transformer_layers")
        inputs = [keras.Input((7, 8)), keras.Input((7, 8))]
        model = keras.Model(inputs, run(inputs))
        streams = [batch(2, 7, 8), batch(2, 7, 8)[::-1]]
        results.append(gradients(model, streams))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4
    assert len(results[0][2]) == 2 * 16


@once  # on each backend tests of runs ask
def test_bytes_kept_by_a_converted_backbone_do_not_grow_with_depth():
    inputs = {name: np.ones((64, 7), "int32") for name in FULL}
    few, many, plain_few, plain_many = (
        saved_activation_bytes(
            hub.to_reversible(gpt2(depth), 0.5, reversible), inputs
        )
        for reversible in (True, False)
        for depth in (2, 4)
    )
    assert plain_many > 1.6 * plain_few
    assert many - few < 0.05 * (plain_many - plain_few)


@once
def test_momentum_follows_the_depth():
    for depth in (2, 4):
        converted = hub.to_reversible(gpt2(depth))
        np.testing.assert_allclose(converted.momentum**depth, 1e-3)


@once
def test_mixed_precision_survives_saving(tmp_path):
    model = hub.to_reversible(gpt2(2, dtype="mixed_bfloat16"), 0.5)
    layer = model.get_layer("transformer_layers").blocks[0].f
    assert layer.compute_dtype == "bfloat16"
    for block in model.get_layer("transformer_layers").blocks:
        block.momentum.assign(0.7)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(
        loaded.predict(FULL, verbose=0), model.predict(FULL, verbose=0)
    )


def bart():
    return keras_hub.models.BartBackbone(
        num_heads=2, max_sequence_length=7, **SIZES
    )


def vgg():
    return keras_hub.models.VGGBackbone([2, 2], [4, 8], (32, 32, 3))


@once
@pytest.mark.parametrize(
    "build, reason",
    [
        (reversible_backbone, "no layer in it"),
        (bart, "it has 2 chains: 3 TransformerEncoder, 3 TransformerDecoder"),
        (vgg, "no layer in it"),
        (converted_gpt2, "no layer in it"),
        (lambda: keras.Sequential(), "it is a .*Sequential"),
    ],
)
def test_other_backbones_are_refused(build, reason):
    with pytest.raises(TypeError, match=reason) as error:
        hub.to_reversible(build())
    assert "keras_efficient.recompute(backbone)" in str(error.value)


@once
def test_what_cannot_generate_is_refused():
    for backbone in (gpt2(), hub.to_reversible(bert())):
        with pytest.raises(TypeError, match="a decoder of.*take a cache"):
            hub.ReversibleCausalLM(backbone)
    with pytest.raises(ValueError, match="`momentum` must be between 0 and 1"):
        hub.to_reversible(gpt2(), 1.0)
