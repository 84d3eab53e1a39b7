"""`fit` with losses of chunks, against `fit` of the same model without."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient import chunk_loss
from keras_efficient import models
from keras_efficient.models import chunked_training
from keras_efficient.ops import head_in_pieces
from tests.gradients import ENDS
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.gradients import to_numpy
from tests.marks import once

VOCABULARY, LENGTH, EXAMPLES = 61, 6, 10
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, VOCABULARY, (EXAMPLES, LENGTH))
TOKENS[:, -2:] = 0
LABELS = RNG.integers(1, VOCABULARY, (EXAMPLES, LENGTH))
WEIGHTS = RNG.uniform(0.5, 1.5, (EXAMPLES, LENGTH))


@pytest.fixture
def chunks(monkeypatch):
    """The sizes of losses that were asked for: else a test shows nothing."""
    found, run = [], chunked_training.weighted_loss

    def weighted_loss(hidden, *args):
        found.append(tuple(hidden.shape))
        return run(hidden, *args)

    monkeypatch.setattr(chunked_training, "weighted_loss", weighted_loss)
    return found


def recurrent(**arguments):
    """Masks, a bias, a regularizer, a loss that a layer adds, dropout."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8, mask_zero=True)(tokens)
    x = layers.LSTM(8, return_sequences=True)(x)
    x = layers.Dropout(0.2, seed=1)(layers.ActivityRegularization(0.01)(x))
    y = layers.Dense(VOCABULARY, kernel_regularizer="l2", **arguments)(x)
    return keras.Model(tokens, y)


def tied():
    embedding = layers.ReversibleEmbedding(
        VOCABULARY, 8, logit_soft_cap=0.5, name="embedding"
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.LayerNormalization()(embedding(tokens))
    return keras.Model(tokens, embedding(x, reverse=True))


def untied():
    embedding = layers.ReversibleEmbedding(VOCABULARY, 8, tie_weights=False)
    tokens = keras.Input((LENGTH,), dtype="int32")
    logits = embedding(layers.Dense(8, "tanh")(embedding(tokens)), reverse=True)
    return keras.Model(
        tokens, layers.Activation("linear", dtype="float32")(logits)
    )


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Subclass(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(VOCABULARY, 8)
        self.head = layers.Dense(VOCABULARY, use_bias=False)

    def call(self, tokens):
        return self.head(self.embedding(tokens))


def subclass():
    model = Subclass()
    model(TOKENS[:1])
    return model


def sequential():
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, 8),
            layers.Dense(VOCABULARY),
        ]
    )


def own():
    return models.ReversibleCausalLM(VOCABULARY, 1, 2, 8, 12)


def hub_model(name, lora=False):
    hub = pytest.importorskip("keras_hub").models
    sizes = {
        "vocabulary_size": VOCABULARY,
        "num_layers": 1,
        "hidden_dim": 8,
        "intermediate_dim": 12,
    }
    if name == "GPT2":
        sizes.update(num_heads=2, max_sequence_length=LENGTH, dropout=0.0)
    else:
        sizes.update(num_query_heads=2, num_key_value_heads=1)
    if name == "Gemma":  # the second generation
        sizes.update(
            head_dim=4,
            query_head_dim_normalize=False,
            use_post_ffw_norm=True,
            use_post_attention_norm=True,
            attention_logit_soft_cap=50.0,
            final_logit_soft_cap=0.5,
            use_sliding_window_attention=True,
            sliding_window_size=4,
        )
    backbone = getattr(hub, f"{name}Backbone")(**sizes)
    if lora:
        backbone.enable_lora(2)
    return getattr(hub, f"{name}CausalLM")(backbone)


def own_hub():
    pytest.importorskip("keras_hub")
    from keras_efficient.models import hub

    backbone = hub.ReversibleBackbone(VOCABULARY, 1, 2, 8, 12)
    return hub.ReversibleCausalLM(backbone)


def lora_of_the_head():
    model = recurrent()
    model.layers[-1].enable_lora(2)
    return model


MODELS = {
    "recurrent": recurrent,
    "lora_of_the_head": lora_of_the_head,
    "tied": tied,
    "untied": untied,
    "subclass": subclass,
    "own": own,
    "gpt2": lambda: hub_model("GPT2"),
    "gemma": lambda: hub_model("Gemma"),
    "llama": lambda: hub_model("Llama"),
    "lora": lambda: hub_model("GPT2", lora=True),
    "own_hub": own_hub,
}
BY_DEFAULT = ("own", "own_hub")


def inputs_of(model):
    if not hasattr(model, "backbone"):
        return TOKENS
    return {"token_ids": TOKENS, "padding_mask": (TOKENS > 0).astype("int32")}


def loss(**options):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, **options
    )


def compiled(model, mode=LAST, optimizer=None, **options):
    options = {
        "loss": loss(ignore_class=5),
        "metrics": ["accuracy"],
        "weighted_metrics": [
            keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5"),
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
        ],
        **options,
    }
    if hasattr(model, "sampler") or hasattr(model, "backbone"):
        options["sampler"] = "greedy"
    model.compile(
        optimizer or keras.optimizers.SGD(0.5), **fit_mode(mode), **options
    )
    return model


def trained(model, labels=LABELS, weights=WEIGHTS, **options):
    """Train on batches of 4, 4 and 2; return all that is to be compared."""
    keras.utils.set_random_seed(1)
    history = model.fit(
        inputs_of(model),
        labels,
        4,
        sample_weight=weights,
        shuffle=False,
        verbose=0,
        **options,
    ).history
    return history, to_numpy(model.variables)


def made(name):
    keras.utils.set_random_seed(0)
    return MODELS[name]()


def assert_same(ours, theirs, tolerance=2e-5):
    (history, variables), (expected, others) = ours, theirs
    assert history.keys() == expected.keys()
    for key in history:
        np.testing.assert_allclose(
            history[key], expected[key], rtol=tolerance, err_msg=key
        )
    for a, b in zip(variables, others, strict=True):
        np.testing.assert_allclose(a, b, 10 * tolerance, tolerance)


@pytest.mark.parametrize(
    "name",
    # What else they have is tested there, or is the same on each backend.
    MODELS if keras.config.backend() == "torch" else ["untied", "lora"],
)
def test_three_steps_are_those_of_the_plain_model(name, chunks):
    results = []
    for chunked in (False, True):
        model = made(name)
        kind, names = type(model), [v.path for v in model.variables]
        if chunked and name in BY_DEFAULT:
            pass
        elif chunked:
            assert chunk_loss(model, 7) is model
        else:
            chunk_loss(model, None)
        compiled(model)
        results.append(trained(model))
        assert bool(chunks) == chunked
        # It is what it was.
        assert type(model) is kind
        assert [v.path for v in model.variables] == names
        x = inputs_of(model)
        logits = model.predict(x, verbose=0)
        assert logits.shape == (EXAMPLES, LENGTH, VOCABULARY)
        logs = model.evaluate(
            x, LABELS, sample_weight=WEIGHTS, verbose=0, return_dict=True
        )
        results[-1][0].update({f"val_{k}": [x] for k, x in logs.items()})
        results[-1][1].append(logits)
        if hasattr(model, "backbone"):
            model.preprocessor = None
            short = {k: v[:2] for k, v in x.items()}
            tokens = model.generate(short, stop_token_ids=None)["token_ids"]
            results[-1][1].append(np.asarray(tokens, "float32"))
    if chunks:
        assert {shape[1] for shape in chunks} == {8}
    assert_same(*results[::-1])


@pytest.mark.parametrize("mode", ENDS)
def test_modes_and_what_fit_takes_besides(mode, chunks):
    """Accumulation, labels of three axes, validation."""
    results = []
    for chunked in (False, True):
        model = made("recurrent")
        if chunked:
            chunk_loss(model)
        adam = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
        compiled(model, mode, adam)
        results.append(
            trained(
                model,
                LABELS[..., None],
                validation_data=(TOKENS, LABELS, WEIGHTS),
            )
        )
        chunk_loss(model, None)
        assert not set(vars(model)) & {"train_step", "compute_loss"}
    assert chunks
    assert_same(*results[::-1])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy, chunks):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        results = []
        for chunked in (False, True):
            model = made("tied")
            if chunked:
                chunk_loss(model, 7)
            compiled(model, metrics=[], weighted_metrics=[])
            results.append(trained(model, weights=None, epochs=2))
            assert model.variables[0].dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)
    assert len(chunks) > 0
    # The plain model rounds its logits to 16 bits.
    assert_same(*results[::-1], tolerance=1e-2)


def test_pieces_of_a_tied_kernel_of_16_bits(monkeypatch, chunks):
    """The gradient of its lookup is added to what the pieces leave."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        results = []
        for words in (head_in_pieces.WORDS_A_PIECE, 16):
            monkeypatch.setattr(head_in_pieces, "WORDS_A_PIECE", words)
            monkeypatch.setattr(head_in_pieces, "ENTRIES_A_PIECE", words)
            model = chunk_loss(made("tied"))
            compiled(model, metrics=[], weighted_metrics=[])
            results.append(trained(model, weights=None))
    finally:
        keras.config.set_dtype_policy(before)
    assert len(chunks) > 0
    assert_same(*results[::-1], tolerance=1e-2)


@once
def test_logits_of_a_step_are_never_whole():
    from keras_efficient.backend.torch_memory import count_alive

    peaks = []
    for chunked in (False, True):
        model = made("tied")
        if chunked:
            chunk_loss(model, 8)
        compiled(model)
        tokens = np.resize(TOKENS, (64, LENGTH))
        model.train_on_batch(tokens, tokens)
        with count_alive([v.value for v in model.variables]) as alive:
            model.train_on_batch(tokens, tokens)
        peaks.append(alive.peak)
    logits = 64 * LENGTH * VOCABULARY * 4
    assert peaks[0] > 2 * logits and peaks[1] < logits


@once
def test_class_weights_and_a_batch_of_classes(chunks):
    results = []
    for chunked in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((LENGTH,)), layers.Dense(8), layers.Dense(9)]
        )
        if chunked:
            chunk_loss(model, 3)
        sgd = keras.optimizers.SGD(0.01)
        compiled(model, optimizer=sgd, loss=loss(reduction="sum"))
        model.fit(
            TOKENS / VOCABULARY,
            LABELS[:, 0] % 9,
            4,
            class_weight={i: i + 1.0 for i in range(9)},
            shuffle=False,
            verbose=0,
        )
        results.append((model.history.history, to_numpy(model.variables)))
    assert chunks
    assert_same(*results[::-1])


@once
def test_perplexity_and_sequences_of_several_lengths(chunks):
    """Means of examples weigh short sequences as long ones."""
    hub = pytest.importorskip("keras_hub")
    results = []
    for chunked in (False, True):
        model = made("subclass")
        if chunked:
            chunk_loss(model, 5)
        perplexity = hub.metrics.Perplexity(from_logits=True, mask_token_id=3)
        # It differs from batch to batch, by more than a loss does.
        mean = keras.metrics.MeanMetricWrapper(
            lambda y, logits: ops.cast(y, "float32"), name="label"
        )
        compiled(model, weighted_metrics=[mean, perplexity], metrics=[])
        batches = (
            (TOKENS[:, :n], LABELS[:, :n], WEIGHTS[:, :n]) for n in (6, 2, 4)
        )
        logs = model.fit(batches, verbose=0).history
        results.append((logs, to_numpy(model.variables)))
    assert chunks
    assert_same(*results[::-1])


@once
def test_weights_of_examples(chunks):
    results = []
    for chunked in (False, True):
        model = made("subclass")
        if chunked:
            chunk_loss(model)
        compiled(model, loss=loss())
        results.append(trained(model, weights=WEIGHTS[:, :1]))
    assert chunks
    assert_same(*results[::-1])


def test_a_frozen_head_gets_no_gradient(chunks):
    results = []
    for chunked in (False, True):
        model = made("subclass")
        model.head.trainable = False
        if chunked:
            chunk_loss(model)
        before = to_numpy(model.head.variables)[0]
        compiled(model, metrics=[], weighted_metrics=[])
        results.append(trained(model))
        np.testing.assert_array_equal(to_numpy(model.head.variables)[0], before)
    assert_same(*results[::-1])
    assert chunks


@once
def test_it_is_not_saved_and_can_be_undone(tmp_path):
    model = chunk_loss(made("tied"), 7)
    compiled(model)
    model.fit(TOKENS, LABELS, 4, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    names = {"train_step", "test_step", "compute_loss", "compute_metrics"}
    assert names <= set(vars(model)) and not names & set(vars(again))
    np.testing.assert_array_equal(
        again.predict(TOKENS, verbose=0), model.predict(TOKENS, verbose=0)
    )
    copy = keras.models.clone_model(model)
    assert not names & set(vars(copy))
    chunk_loss(chunk_loss(model), None)
    assert not names & set(vars(model))
    assert "call" not in vars(model.get_layer("embedding"))
    model.fit(TOKENS, LABELS, 4, verbose=0)


def custom_loss(y_true, y_pred):
    return ops.mean(y_pred)


def mean_of_a_batch(y_true, y_pred):
    return ops.exp(ops.mean(y_pred))


@once
@pytest.mark.parametrize(
    "options, words",
    [
        ({"loss": custom_loss}, "one loss"),
        ({"loss": "sparse_categorical_crossentropy"}, "one loss"),
        (
            {"loss": keras.losses.SparseCategoricalCrossentropy()},
            "from_logits=False",
        ),
        ({"loss": loss(reduction=None)}, "reduction=None"),
        ({"metrics": [mean_of_a_batch]}, "neither a sum nor a mean"),
    ],
)
def test_what_cannot_be_computed_in_chunks_is_refused(options, words):
    model = chunk_loss(made("tied"))
    compiled(model, **options)
    before = to_numpy(model.variables)
    with pytest.raises(ValueError, match=words):
        model.fit(TOKENS, LABELS, verbose=0)
    np.testing.assert_array_equal(
        *[x[0] for x in (before, to_numpy(model.variables))]
    )
    if "loss" in options:
        plain = compiled(made("tied"), **options)
        with pytest.raises(ValueError, match=words):
            chunk_loss(plain)
        assert "train_step" not in vars(plain)
    # By default a model computes such a loss as it is.
    if "reduction" not in words:
        compiled(made("own"), **options).fit(TOKENS, LABELS, verbose=0)


class OwnStep(Subclass):
    def train_step(self, *args):
        return super().train_step(*args)


class NotTheHead(Subclass):
    def call(self, tokens):
        return super().call(tokens) * 2


def two_heads():
    model = recurrent()
    other = layers.Dense(3)(model.layers[-2].output)
    return keras.Model(model.input, [model.output, other])


@once
@pytest.mark.parametrize(
    "make, words",
    [
        (two_heads, "2 outputs"),
        (lambda: recurrent(activation="softmax"), "activation"),
        (lambda: recurrent(activity_regularizer="l2"), "regularizer"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.ReLU()]), "Dense"),
        (OwnStep, "train_step"),
    ],
)
def test_models_that_cannot_are_refused(make, words):
    model = make()
    if not model.built:
        model(TOKENS[:1])
    with pytest.raises(ValueError, match=words):
        chunk_loss(model)
    assert not {"train_step", "compute_loss"} & set(vars(model))


@once
def test_a_layer_that_does_not_make_the_output_is_refused():
    model = NotTheHead()
    model(TOKENS[:1])
    compiled(chunk_loss(model))
    with pytest.raises(ValueError, match="must return what layer"):
        model.fit(TOKENS, LABELS, verbose=0)
    with pytest.raises(ValueError, match="from a `keras.layers.Dense`"):
        chunk_loss(model, head=model.embedding)


@once
def test_arguments_are_checked():
    with pytest.raises(TypeError, match="keras.Model"):
        chunk_loss(layers.Dense(3))
    with pytest.raises(TypeError, match="number of tokens"):
        chunk_loss(made("tied"), "all")
    with pytest.raises(ValueError, match="at least one"):
        chunk_loss(made("tied"), 0)
    options = {"metrics": [], "weighted_metrics": []}
    model = chunk_loss(compiled(made("tied"), **options))
    with pytest.raises(ValueError, match="vocabulary"):
        model.fit(TOKENS, LABELS + VOCABULARY, verbose=0)
