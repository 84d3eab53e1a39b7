"""Steps in parts against steps of whole batches."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import chunk_loss
from keras_efficient import micro_batches
from keras_efficient.conversion.micro_batches import MicroBatches
from tests.gradients import ENDS
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.gradients import to_numpy
from tests.marks import once

WORDS, LENGTH = 7, 5
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, WORDS, (17, LENGTH))
TOKENS[RNG.uniform(size=TOKENS.shape) < 0.3] = 0
LABELS = RNG.integers(0, WORDS, TOKENS.shape)
WEIGHTS = RNG.uniform(0.5, 2, TOKENS.shape) * (RNG.uniform(size=(17, 1)) < 0.8)


@pytest.fixture
def parts(monkeypatch):
    """How many parts were run, or traced: else a test shows nothing."""
    found, part = [], MicroBatches.part

    def counted(self, division, leaves):
        found.append(division)
        return part(self, division, leaves)

    monkeypatch.setattr(MicroBatches, "part", counted)
    return found


def tagger(masked=False, **arguments):
    """Penalties of weights and of activities, and a loss that layers add."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, 6, mask_zero=masked)(tokens)
    x = layers.Dense(
        6, "tanh", activity_regularizer=keras.regularizers.L2(0.1)
    )(x)
    x = layers.LSTM(6, return_sequences=True)(x)
    x = AddedLoss()(x)
    x = layers.Dense(WORDS, kernel_regularizer="l2", **arguments)(x)
    return keras.Model(tokens, x)


class AddedLoss(layers.Layer):
    supports_masking = True

    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(x * x))
        return x

    def compute_mask(self, x, mask=None):
        return mask


def loss(**options):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, **options
    )


def trained(model, n, mode=LAST, weights=WEIGHTS, **options):
    """Train on batches of 10 and 7; return what is to be compared."""
    if n > 1:
        assert micro_batches(model, n) is model
    options = {
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
        "loss": loss(),
        "metrics": ["accuracy"],
        "weighted_metrics": [
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
        ],
        **options,
    }
    model.compile(**fit_mode(mode), **options)
    history = model.fit(
        TOKENS,
        LABELS,
        10,
        sample_weight=weights,
        epochs=2,
        shuffle=False,
        verbose=0,
    ).history
    return history, to_numpy(model.variables)


def assert_same(ours, theirs, tolerance=1e-5):
    assert ours[0].keys() == theirs[0].keys()
    for key in ours[0]:
        np.testing.assert_allclose(
            ours[0][key], theirs[0][key], rtol=10 * tolerance, err_msg=key
        )
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, 10 * tolerance, tolerance)


CASES = {
    "mean": (False, {}),
    "sum": (False, {"loss": loss(reduction="sum"), "optimizer": "sgd"}),
    "masked": (True, {"loss": loss(ignore_class=3)}),
    "of_weights": (True, {"loss": loss(reduction="mean_with_sample_weight")}),
    "ignored": (False, {"loss": loss(ignore_class=3)}),
}
BY_BACKEND = CASES if keras.config.backend() == "torch" else ("masked",)


@pytest.mark.parametrize("case", BY_BACKEND)
def test_a_step_in_parts_is_that_of_the_whole_batch(case, parts):
    masked, options = CASES[case]
    if case != "mean":  # by which Keras on PyTorch multiplies weights in place
        options = {"weighted_metrics": None, **options}
    ours = trained(tagger(masked), 3, **options)
    assert parts
    assert_same(ours, trained(tagger(masked), 1, **options))


@pytest.mark.parametrize("mode", ENDS)
def test_with_chunks_accumulation_and_loss_scaling(mode, parts):
    results = []
    for n in (20, 1):  # more than there are examples
        model = tagger()
        if n > 1:
            chunk_loss(model, 4)
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
        )
        results.append(trained(model, n, mode, None, optimizer=optimizer))
        micro_batches(chunk_loss(model, None), 1)
        assert not {"train_step", "compute_loss"} & set(vars(model))
    assert parts
    assert_same(*results)


def two_heads():
    keras.utils.set_random_seed(0)
    x = keras.Input((LENGTH,))
    heads = layers.Dense(WORDS, name="a"), layers.Dense(1, name="b")
    return keras.Model(x, [head(x) for head in heads])


@once
def test_several_losses(parts):
    losses = [loss(), "mse"]
    y = [LABELS[:, 0], TOKENS[:, :1]]
    results = []
    for n in (4, 1):
        model = micro_batches(two_heads(), n)
        model.compile(
            keras.optimizers.SGD(0.01), losses, metrics=[["accuracy"], ["mae"]]
        )
        logs = model.fit(TOKENS / 7, y, 10, shuffle=False, verbose=0)
        results.append((logs.history, to_numpy(model.variables)))
    assert parts
    assert_same(*results)
    losses[0] = loss(reduction="sum")
    model = micro_batches(two_heads(), 2)
    model.compile("sgd", losses)
    with pytest.raises(ValueError, match="means over all examples"):
        model.fit(TOKENS / 7, y, verbose=0)


@once
def test_names_of_losses_and_subclasses(parts):
    class Masked(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(WORDS, 4, mask_zero=True)
            self.head = layers.Dense(1)

        def call(self, tokens):
            return self.head(self.embedding(tokens))

    results = []
    for n in (3, 1):
        keras.utils.set_random_seed(0)
        model = micro_batches(Masked(), n)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        logs = model.fit(
            TOKENS,
            LABELS[..., None] / 7,
            10,
            shuffle=False,
            verbose=0,
        )
        results.append((logs.history, to_numpy(model.variables)))
    assert parts
    assert_same(*results)


def test_masks_differ_and_statistics_are_of_parts(parts):
    """Dropout moves on by a draw a part; a BatchNormalization sees each."""
    x = RNG.normal(size=(6, 4)).astype("float32")
    drop = layers.Dropout(0.5, seed=1)
    norm = layers.BatchNormalization(momentum=0.5)
    inputs = keras.Input((4,))
    y = layers.Dense(1)(drop(norm(inputs)))
    model = micro_batches(keras.Model(inputs, y), 3)
    model.compile("sgd", "mse", **fit_mode(LAST))
    before = to_numpy(drop.variables)[0]
    model.fit(x, x[:, :1], 6, shuffle=False, verbose=0)
    assert np.any(to_numpy(drop.variables)[0] != before)
    mean = np.zeros(4)
    for part in np.split(x, 3):
        mean = 0.5 * mean + 0.5 * part.mean(0)
    np.testing.assert_allclose(to_numpy([norm.moving_mean])[0], mean, 1e-5)


@once
def test_nothing_outlives_a_step():
    model = micro_batches(tagger(), 3)
    names = [v.path for v in model.variables]
    trained(model, 1, optimizer=keras.optimizers.SGD(0.1))
    assert [v.path for v in model.variables] == names
    assert all(v.value.grad is None for v in model.variables)
    assert len(model.optimizer.variables) == 2


@once
def test_errors_say_what_was_expected():
    class OwnStep(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = tagger()
    for arguments, error, words in (
        ((layers.Dense(3), 2), TypeError, "keras.Model"),
        ((model, 2.0), TypeError, "integer"),
        ((model, 0), ValueError, "at least 1"),
        ((OwnStep([keras.Input((2,))]), 2), ValueError, "train_step"),
    ):
        with pytest.raises(error, match=words):
            micro_batches(*arguments)
    assert "train_step" not in vars(model)
