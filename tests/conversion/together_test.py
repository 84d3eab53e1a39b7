"""What changes a model in place, on one model, in any order."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import chunk_loss
from keras_efficient import micro_batches
from keras_efficient import recompute
from keras_efficient.models import chunked_training
from keras_efficient.models.chunked_training import ChunkedTraining
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.gradients import to_numpy

WORDS, LENGTH = 31, 6
TOKENS = np.random.default_rng(0).integers(0, WORDS, (7, LENGTH))
CHANGES = {
    recompute: None,
    chunk_loss: None,
    micro_batches: 1,
}
ORDERS = list(itertools.permutations(CHANGES))
if keras.config.backend() != "torch":
    ORDERS = [ORDERS[0], ORDERS[-1]]


@pytest.fixture
def parts(monkeypatch):
    found, run = [], chunked_training.weighted_loss

    def weighted_loss(hidden, *args):
        found.append(tuple(hidden.shape))
        return run(hidden, *args)

    monkeypatch.setattr(chunked_training, "weighted_loss", weighted_loss)
    return found


def network():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(WORDS, 8)
    x = embedding(tokens)
    for i in range(3):
        block = [layers.Dense(12, "gelu"), layers.LayerNormalization()]
        block = keras.Sequential([*block, layers.Dense(8)], name=f"block_{i}")
        x = layers.Add()([x, block(x)])
    return keras.Model(tokens, embedding(x, reverse=True))


def trained(model):
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        **fit_mode(LAST),
    )
    weights = np.linspace(0.5, 2, 7)[:, None] * np.ones(LENGTH)
    logs = model.fit(
        *(TOKENS, TOKENS[:, ::-1], 4),
        sample_weight=weights,
        shuffle=False,
        verbose=0,
    ).history
    return [*logs.values()], to_numpy(model.variables)


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: o[0].__name__)
def test_any_order(order, parts):
    losses, variables = trained(network())
    model = network()
    for change in order:
        assert change(model, *([3] if change is micro_batches else [])) is model
    ours = trained(model)
    assert parts
    np.testing.assert_allclose(ours[0], losses, rtol=1e-5)
    for a, b in zip(ours[1], variables, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    # And back, in the order that is not that of a stack.
    for change in order:
        change(model, CHANGES[change])
    assert ChunkedTraining.of(model) is None
    methods = {"call", "train_step", "test_step", "compute_loss"}
    for layer in (model, *model.layers):
        assert not methods & set(vars(layer))
