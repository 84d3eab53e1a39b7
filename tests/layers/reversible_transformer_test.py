"""Encoder and decoder blocks, checked against NumPy and the plain twin."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.layers import ReversibleSequence
from keras_efficient.layers import ReversibleTransformerDecoder
from keras_efficient.layers import ReversibleTransformerEncoder
from tests.gradients import GRAPH
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors

PADDING = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], "bool")
ANY = np.random.default_rng(1).random((2, 5, 5)) < 0.6
MASKS = {"": None, "pad": PADDING, "any": ANY}
SOURCE_PADDING = np.array([[1, 1, 0], [1, 1, 1]], "bool")
OPTIONS = {
    "encoder": (ReversibleTransformerEncoder, {}),
    "grouped": (ReversibleTransformerEncoder, {"num_key_value_heads": 2}),
    "one_group": (ReversibleTransformerDecoder, {"num_key_value_heads": 1}),
    "rope": (ReversibleTransformerDecoder, {"use_rope": True}),
    "cross": (
        ReversibleTransformerDecoder,
        {
            "cross_attention": True,
            "num_key_value_heads": 2,
            "normalization": "peri",
        },
    ),
    "post": (ReversibleTransformerEncoder, {"normalization": "post"}),
}


def fill(layer):
    """Give all variables, biases too, values that matter."""
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        shift = 0.4 * rng.normal(size=variable.shape)
        variable.assign(ops.convert_to_numpy(variable) + shift)


def scatter(model):
    """Give a language model weights by which one token follows another."""
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        if variable.name not in ("beta", "bias"):
            variable.assign(rng.normal(size=variable.shape))


class Reference:
    """A block in NumPy, from the values of its variables."""

    def __init__(self, block):
        self.block = block

    def norm(self, layer, x):
        if not layer.weights:
            return x
        gamma, beta = to_numpy(layer.weights)
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5)
        return gamma * x + beta

    def dense(self, layer, x):
        kernel, bias = to_numpy(layer.weights)
        return x @ kernel.reshape(x.shape[-1], -1) + bias.reshape(-1)

    def heads(self, x, number):
        return x.reshape(*x.shape[:2], number, -1)

    def attend(self, query, key, value, mask):
        groups = query.shape[2] // key.shape[2]
        key, value = (np.repeat(x, groups, axis=2) for x in (key, value))
        scores = np.einsum("bqhd,bkhd->bhqk", query, key)
        scores = scores / np.sqrt(query.shape[-1])
        scores = np.where(mask[:, None], scores, -1e30)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bkhd->bqhd", scores, value)
        return y.reshape(*y.shape[:2], -1)

    def turn(self, x):
        half = x.shape[-1] // 2
        z = x[..., :half] + 1j * x[..., half:]
        rate = 10000.0 ** (-np.arange(half) / half)
        z = z * np.exp(1j * np.arange(x.shape[1])[:, None, None] * rate)
        return np.concatenate([z.real, z.imag], axis=-1)

    def attention(self, x, mask):
        layer = self.block.attention
        x = self.norm(layer.norm, x)
        groups = self.block.num_key_value_heads
        query = self.heads(self.dense(layer.query, x), self.block.num_heads)
        key = self.heads(self.dense(layer.key, x), groups)
        value = self.heads(self.dense(layer.value, x), groups)
        if self.block.use_rope:
            query, key = self.turn(query), self.turn(key)
        y = self.attend(query, key, value, mask)
        return self.norm(layer.output_norm, self.dense(layer.projection, y))

    def cross_attention(self, x, source, mask):
        layer = self.block.cross_attention
        x = self.norm(layer.norm, x)
        # In the order of creation: query, key, value, output.
        weights = to_numpy(layer.attention.weights)
        query, key, value = (
            np.einsum("blw,whd->blhd", x, kernel) + bias
            for x, kernel, bias in zip(
                (x, source, source), weights[0:6:2], weights[1:6:2]
            )
        )
        y = self.attend(query, key, value, mask)
        y = y @ weights[6].reshape(-1, x.shape[-1]) + weights[7]
        return self.norm(layer.output_norm, y)

    def feed_forward(self, x):
        layer = self.block.feed_forward
        y = self.dense(layer.expansion, self.norm(layer.norm, x))
        y = self.dense(layer.projection, np.maximum(y, 0))
        return self.norm(layer.output_norm, y)

    def __call__(self, x1, x2, mask, source=None, source_mask=None):
        if self.block.is_causal:
            mask = mask & np.tril(np.ones((5, 5), "bool"))
        if source is None:
            y1 = x1 + self.attention(x2, mask)
            return y1, x2 + self.feed_forward(y1)
        y2 = x1 + self.attention(x2, mask)
        y1 = x2 + self.cross_attention(y2, source, source_mask[:, None])
        return y1, y2 + self.feed_forward(y1)


CASES = [*itertools.product(OPTIONS, MASKS)]
if keras.config.backend() != "torch":
    CASES = [*zip(OPTIONS, itertools.cycle(MASKS))]


@pytest.mark.parametrize("name, mask", CASES)
def test_computes_what_numpy_does(name, mask):
    kind, arguments = OPTIONS[name]
    mask = MASKS[mask]
    block = kind(12, num_heads=4, activation="relu", **arguments)
    inputs = [batch(2, 5, 16), batch(2, 5, 16)[::-1] + 1]
    context, source = {}, ()
    if "cross_attention" in arguments:
        source = (batch(2, 3, 6), SOURCE_PADDING)
        context = {"context": list(source)}
    y = block(inputs, mask=mask, **context)
    fill(block)
    y = to_numpy(block(inputs, mask=mask, **context))
    seen = np.ones((2, 1, 5), "bool") if mask is None else mask
    seen = seen[:, None] if seen.ndim == 2 else seen
    expected = Reference(block)(*inputs, seen, *source)
    # Where a query may see nothing at all, its attention is arbitrary.
    sees = np.broadcast_to(seen, (2, 5, 5))
    if block.is_causal:
        sees = sees & np.tril(np.ones((5, 5), "bool"))
    known = sees.any(-1)
    for ours, theirs in zip(y, expected, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours[known], theirs[known], atol=2e-5)
    again = to_numpy(block.inverse([*y], mask=mask, **context))
    for ours, theirs in zip(again, inputs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def masked(reversible):
    """Two blocks with all there is: masks, a context, Dropout, positions."""
    keras.utils.set_random_seed(7)
    blocks = [
        ReversibleTransformerDecoder(
            12,
            4,
            num_key_value_heads=2,
            use_rope=True,
            dropout=0.2,
            activation="tanh",
            drop_rate=0.3,
            cross_attention=True,
        )
        for _ in range(2)
    ]
    x, source = (
        keras.Input(batch_shape=shape) for shape in ((2, 5, 8), (2, 3, 6))
    )
    y = ReversibleSequence(blocks, reversible)(
        [x, x], context=[source, SOURCE_PADDING], mask=PADDING
    )
    return keras.Model([x, source], y)


def test_gradients_equal_those_of_the_plain_twin():
    results = []
    for reversible in (True, False):
        model = masked(reversible)
        fill(model)
        keras.utils.set_random_seed(1)
        inputs = [batch(2, 5, 8), batch(2, 3, 6)]
        results.append(gradients(model, inputs, GRAPH))
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4
    # The bias of the keys alone moves all scores of a query alike. And what
    # is dropped for both sequences has no gradient.
    moved = [np.linalg.norm(d) > 1e-4 for d in results[1][2]]
    assert sum(moved) >= len(moved) / 2 and len(moved) == 2 * 26


def test_stochastic_depth_drops_whole_sequences():
    """Of each function by itself, and what is left is scaled up."""
    block = ReversibleTransformerDecoder(
        12, 2, drop_rate=0.5, cross_attention=True
    )
    x, context = batch(40, 3, 8), batch(40, 2, 8)
    block([x, x], context=context)
    fill(block)
    for function in (
        lambda **how: block.attention(x, **how),
        lambda **how: block.cross_attention(x, context, **how),
        lambda **how: block.feed_forward(x, **how),
    ):
        whole, some = to_numpy([function(), function(training=True)])
        dropped = np.all(some == 0, axis=(1, 2))
        assert 5 < dropped.sum() < 35
        kept = ~dropped[:, None, None]
        np.testing.assert_allclose(some, 2 * kept * whole, rtol=1e-5)


def test_later_positions_do_not_reach_earlier_ones():
    block = ReversibleTransformerDecoder(12, 2, use_rope=True)
    x = batch(1, 6, 16)
    y = to_numpy([block(x)])[0]
    x = x.copy()
    x[:, 4, ::2] += 1
    changed = to_numpy([block(x)])[0]
    np.testing.assert_array_equal(changed[:, :4], y[:, :4])
    assert np.all(np.any(changed[:, 4:] != y[:, 4:], axis=-1))


def test_a_keras_mask_is_taken_up():
    ids = np.array([[3, 1, 2, 0, 0]])
    embedding = keras.layers.Embedding(4, 8, mask_zero=True)
    block = ReversibleTransformerEncoder(12, 2)
    model = keras.Sequential([embedding, block])
    y = model.predict(ids, verbose=0)
    expected = model.predict(ids[:, :3], verbose=0)
    np.testing.assert_allclose(y[:, :3], expected, atol=1e-5)


def test_precision_of_functions_survives_saving(tmp_path):
    x = keras.Input((5, 16))
    block = ReversibleTransformerDecoder(12, 2, dtype="mixed_bfloat16")
    model = keras.Model(x, ReversibleSequence([block])(x))
    assert model.output.dtype == "float32"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    functions = loaded.layers[-1].blocks[0].attention
    assert functions.compute_dtype == "bfloat16"
    assert functions.query.compute_dtype == "bfloat16"
    assert functions.query.kernel.dtype == "float32"
    inputs = batch(2, 5, 16)
    np.testing.assert_array_equal(
        loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )


@once
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_config_round_trip(options):
    kind, arguments = options
    block = kind(
        12, 4, dropout=0.1, activation="relu", drop_rate=0.2, **arguments
    )
    again = kind.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    assert block.get_config()["activation"] == "relu"


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="must be a multiple of `num_key_val"):
        ReversibleTransformerEncoder(12, 4, num_key_value_heads=3)
    with pytest.raises(ValueError, match="multiple of `num_heads`.*width=6"):
        ReversibleTransformerEncoder(12, 4)(batch(2, 5, 12))
    with pytest.raises(ValueError, match="even size.*which is 3 a head"):
        ReversibleTransformerEncoder(12, 2, use_rope=True)(batch(2, 5, 12))
    with pytest.raises(ValueError, match="`normalization` must be one of"):
        ReversibleTransformerEncoder(12, 2, normalization="batch")
    block = ReversibleTransformerDecoder(12, 2, cross_attention=True)
    with pytest.raises(ValueError, match="needs the output of an encoder"):
        block(batch(2, 5, 8))
