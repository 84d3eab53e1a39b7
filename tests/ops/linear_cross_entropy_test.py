"""Losses of chunks against the plain computation, with their gradients."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient.ops import linear_cross_entropy
from keras_efficient.ops.shared_lookup import shared_lookup
from keras_efficient.ops.vocabulary_chunks import Loss
from keras_efficient.ops.vocabulary_chunks import Metrics
from keras_efficient.ops.vocabulary_chunks import weighted_loss
from tests.gradients import MODES
from tests.gradients import to_numpy

BACKEND = keras.config.backend()
TOKENS, WIDTH, VOCABULARY = 37, 12, 50
RNG = np.random.default_rng(0)
CASES = (
    {},
    {"label_smoothing": 0.1, "chunk_size": 5},
    {
        "soft_cap": 3.0,
        "label_smoothing": 0.2,
        "ignore_class": 7,
        "transpose": True,
        "chunk_size": 16,
    },
    {"ignore_class": -1, "chunk_size": 1},
    {"soft_cap": 2.0, "chunk_size": 100},
)


def data(dtype="float32", tokens=TOKENS, transpose=False, ignore_class=None):
    hidden = RNG.normal(size=(tokens, WIDTH))
    kernel = RNG.normal(size=(WIDTH, VOCABULARY)) / 2
    bias = RNG.normal(size=VOCABULARY)
    labels = RNG.integers(0, VOCABULARY, tokens).astype("int32")
    if ignore_class is not None:
        labels[::3] = ignore_class
    kernel = kernel.T if transpose else kernel
    floats = [ops.cast(x, dtype) for x in (hidden, kernel, bias)]
    weights = RNG.uniform(0.5, 2, tokens) * (np.arange(tokens) % 5 > 0)
    return floats, labels, weights.astype("float32")


def plain(
    hidden,
    kernel,
    bias,
    labels,
    soft_cap=None,
    label_smoothing=0.0,
    ignore_class=None,
    transpose=False,
    chunk_size=None,
):
    """The same in float64 and by NumPy's rules, but for the gradients."""
    kernel = ops.transpose(kernel) if transpose else kernel
    z = ops.matmul(hidden, kernel) + bias
    z = z if soft_cap is None else soft_cap * ops.tanh(z / soft_cap)
    log_p = z - ops.logsumexp(z, axis=-1, keepdims=True)
    target = ops.one_hot(ops.maximum(labels, 0), VOCABULARY, dtype=z.dtype)
    target = target * (1 - label_smoothing) + label_smoothing / VOCABULARY
    losses = -ops.sum(target * log_p, axis=-1)
    if ignore_class is None:
        return losses
    return ops.where(ops.equal(labels, ignore_class), 0.0, losses)


def derivative(fn, floats, mode):
    """Return `fn(*floats)` and its gradients as arrays, run in a mode."""
    floats = [ops.convert_to_tensor(x) for x in floats]
    count = len(floats)
    if BACKEND == "jax":
        import jax

        step = jax.value_and_grad(fn, tuple(range(count)))
        value, found = (jax.jit(step) if mode == "jit" else step)(*floats)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        def step(*floats):
            with tf.GradientTape() as tape:
                tape.watch(floats)
                value = fn(*floats)
            return value, tape.gradient(value, floats)

        if mode != "eager":
            # The number of tokens is not known.
            specs = [tf.TensorSpec(x.shape, x.dtype) for x in floats]
            if count > 1:
                specs[0] = tf.TensorSpec([None, WIDTH], floats[0].dtype)
            step = tf.function(step, specs, jit_compile=mode == "xla")
        value, found = step(*floats)
    else:
        floats = [x.detach().requires_grad_() for x in floats]
        value = fn(*floats)
        value.backward()
        found = [x.grad for x in floats]
    assert [x.dtype for x in found] == [x.dtype for x in floats]
    return to_numpy([value, *found])


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.astype("float64"), b.astype("float64")
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


ALL_MODES = (*MODES, "eager") if BACKEND == "jax" else MODES


@pytest.mark.parametrize("mode", ALL_MODES)
def test_equals_the_plain_computation(mode):
    # On PyTorch all of them; what is compiled or slow takes fewer.
    few = {"eager": CASES[2:3]}.get(mode, CASES[1:4])
    for case in CASES if BACKEND == "torch" else few:
        floats, labels, weights = data(
            transpose=case.get("transpose", False),
            ignore_class=case.get("ignore_class"),
        )
        y, w = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights)

        def ours(hidden, kernel, bias):
            """Both schemes in one program, with other cotangents than one."""
            losses = linear_cross_entropy(hidden, kernel, y, bias, **case)
            total, _ = weighted_loss(
                hidden, (kernel, bias), y, w, Loss(**case), None
            )
            return ops.sum(w * losses) + 3 * total

        def theirs(hidden, kernel, bias):
            return 4 * ops.sum(w * plain(hidden, kernel, bias, y, **case))

        found = [derivative(fn, floats, mode) for fn in (ours, theirs)]
        assert_close(*found, 3e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_16_bit_operands_are_float32(dtype):
    floats, labels, weights = data(dtype, tokens=300)
    # As of a mean over many tokens: lost in float16 times a probability.
    y, w = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights * 1e-6)

    def of_tokens(hidden, kernel, bias):
        losses = linear_cross_entropy(hidden, kernel, y, bias, chunk_size=4)
        assert keras.backend.standardize_dtype(losses.dtype) == "float32"
        return ops.sum(w * losses)

    def weighted(hidden, kernel, bias):
        return weighted_loss(
            hidden, (kernel, bias), y, w, Loss(chunk_size=4), None
        )[0]

    def exact(kernel, hidden, bias):
        return ops.sum(w * plain(hidden, kernel, bias, y))

    wide = [ops.cast(x, "float32") for x in floats]
    kernel = wide[1]
    theirs = derivative(
        lambda kernel: exact(kernel, wide[0], wide[2]), [kernel], MODES[-1]
    )
    for fn in (of_tokens, weighted):
        # A float32 kernel has a float32 gradient: no sum is rounded.
        ours = derivative(
            lambda kernel: fn(floats[0], kernel, wide[2]), [kernel], MODES[-1]
        )
        # Some round the factors of products to 16 bits, not the sums.
        rounds = BACKEND == "jax" or (BACKEND, dtype) == ("torch", "bfloat16")
        assert_close(ours, theirs, 2e-3 if rounds else 1e-5)
        derivative(fn, floats, MODES[-1])  # in 16 bits


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_16_bit_kernels_are_rounded_once(mode):
    metrics = Metrics(
        lambda state, y, z: (state[0] + ops.sum(z),), (ops.zeros(()),)
    )
    for case in CASES[1:3] if mode == MODES[-1] else CASES[2:3]:
        floats, labels, weights = data(
            "bfloat16",
            transpose=case.get("transpose", False),
            ignore_class=case.get("ignore_class"),
        )
        y, w = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights)

        def ours(hidden, kernel, bias):
            losses = linear_cross_entropy(hidden, kernel, y, bias, **case)
            parameters, options = (kernel, bias), Loss(**case)
            total, _ = weighted_loss(
                hidden, parameters, y, w, options, None, (True, False)
            )
            parameters = ops.stop_gradient(kernel), ops.stop_gradient(bias)
            seen, (logits,) = weighted_loss(
                hidden, parameters, y, w, options, metrics
            )
            return ops.sum(w * losses) + total + seen + 0 * logits

        def theirs(hidden, kernel, bias):
            fixed = ops.stop_gradient(kernel), ops.stop_gradient(bias)
            losses = plain(hidden, kernel, bias, y, **case)
            others = plain(hidden, *fixed, y, **case)
            return ops.sum(w * losses) + 2 * ops.sum(w * others)

        wide = [ops.cast(x, "float32") for x in floats]
        value, hidden, kernel, bias = derivative(ours, floats, mode)
        expected = derivative(theirs, wide, mode)
        # TensorFlow does not round the factors of products to 16 bits.
        limit = {"tensorflow": 1e-5}.get(BACKEND, 4e-3)
        assert_close([value], expected[:1], limit)
        hidden = hidden.astype("float32")
        assert_close([hidden], expected[1:2], 1 / 64)  # three are added
        for x, exact in ((kernel, expected[2]), (bias, expected[3])):
            # Half a step of bfloat16, and where factors are rounded, too.
            bound = np.abs(exact) / 256 + limit * np.max(np.abs(exact))
            assert np.all(np.abs(x.astype("float32") - exact) <= bound)


@pytest.mark.skipif(BACKEND != "torch", reason="a setting of PyTorch")
def test_float32_products_have_fewer_digits_only_for_bfloat16(monkeypatch):
    import torch

    settings, product = torch.backends.mkldnn.matmul, backend.product
    before, seen = settings.fp32_precision, {}

    def spy(*args, **kwargs):
        seen.setdefault(dtype, set()).add(settings.fp32_precision)
        return product(*args, **kwargs)

    monkeypatch.setattr(backend, "product", spy)
    for dtype in ("bfloat16", "float16", "float32"):
        (hidden, kernel, _), labels, _ = data(dtype)
        linear_cross_entropy(hidden, kernel, labels)
        assert settings.fp32_precision == before
    assert before != "bf16"
    assert seen == {
        "bfloat16": {"bf16"},
        "float16": {before},
        "float32": {before},
    }


def test_lookups_add_to_the_gradient_of_the_other_use():
    table = np.arange(12, dtype="float32").reshape(4, 3)
    indices = ops.convert_to_tensor(np.array([[1, -1], [1, 0]], "int32"))
    weights = np.arange(1, 13, dtype="float32").reshape(2, 2, 3)
    w, v = ops.convert_to_tensor(weights), ops.convert_to_tensor(table + 1)

    def both(table):
        rows, other = shared_lookup(table, indices)
        return ops.sum(w * rows) + ops.sum(v * other * other)

    def one(table):
        rows, _ = shared_lookup(table, indices)
        return ops.sum(w * rows)

    of_rows = np.zeros_like(table)
    np.add.at(of_rows, [1, 3, 1, 0], weights.reshape(4, 3))
    for mode in MODES:
        (value, found), (_, alone) = (
            derivative(fn, [table], mode) for fn in (both, one)
        )
        np.testing.assert_allclose(alone, of_rows)
        np.testing.assert_allclose(found, of_rows + 2 * (table + 1) * table)
    rows = table[[1, 3, 1, 0]].reshape(2, 2, 3)
    expected = np.sum(weights * rows) + np.sum((table + 1) * table**2)
    np.testing.assert_allclose(value, expected)


def test_any_number_of_axes_and_a_float64_computation(float64):
    hidden = RNG.normal(size=(2, 3, 4, WIDTH))
    kernel = RNG.normal(size=(WIDTH, VOCABULARY))
    labels = RNG.integers(0, VOCABULARY, (2, 3, 4))
    y = linear_cross_entropy(hidden, kernel, labels)
    assert y.shape == (2, 3, 4)
    z = hidden @ kernel
    expected = np.log(np.exp(z).sum(-1))
    expected -= np.take_along_axis(z, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(*to_numpy([y]), expected, rtol=1e-12)


def test_bytes_do_not_grow_with_the_logits():
    """But with the hidden states; the plain computation is the control."""

    def peak(fn, tokens):
        kernel = ops.zeros((4, 2048))
        y = ops.zeros((tokens,), "int32")
        return backend.peak_bytes(
            lambda params, hidden: fn(hidden, params[0], y),
            [kernel],
            ops.zeros((tokens, 4)),
        )

    def chunks(hidden, kernel, y):
        return linear_cross_entropy(hidden, kernel, y, chunk_size=64)

    def all_at_once(hidden, kernel, y):
        z = ops.matmul(hidden, kernel)
        return ops.sparse_categorical_crossentropy(y, z, from_logits=True)

    few, many = peak(chunks, 512), peak(chunks, 1024)
    plain = peak(all_at_once, 1024)
    assert many < 0.2 * plain
    growth = plain - peak(all_at_once, 512)
    # TensorFlow's count takes the body of a loop as often as it is written.
    assert many - few < 0.05 * growth


def test_metrics_see_each_chunk_once():
    (hidden, kernel, bias), labels, weights = data()

    def update(state, y, z, w):
        total, count = state
        hit = ops.cast(ops.equal(ops.argmax(z, -1), y), "float32")
        return total + ops.sum(w * hit), count + ops.sum(ops.ones_like(w))

    w = ops.convert_to_tensor(weights)
    state = ops.zeros(()), ops.zeros(())
    _, state = weighted_loss(
        hidden,
        (kernel, bias),
        ops.convert_to_tensor(labels),
        w,
        Loss(chunk_size=8),
        Metrics(update, state, (w,)),
        gradients=(False, False),
    )
    hidden, kernel, bias = to_numpy([hidden, kernel, bias])
    z = hidden @ kernel + bias
    hits = np.sum(weights * (z.argmax(-1) == labels))
    np.testing.assert_allclose(to_numpy(state), [hits, TOKENS], rtol=1e-6)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"chunk_size": 0}, ValueError, "positive integer"),
        ({"soft_cap": -1.0}, ValueError, "bound of logits"),
        ({"label_smoothing": 1.0}, ValueError, r"\[0, 1\)"),
        ({"transpose": True}, ValueError, r"\(vocabulary, 12\)"),
        ({"bias": np.zeros(3, "float32")}, ValueError, r"\(50,\)"),
        ({"labels": np.zeros(36, "int32")}, ValueError, r"\(37,\)"),
        ({"labels": np.zeros(37, "float32")}, TypeError, "integers"),
        ({"kernel": np.zeros((12, 50), "int32")}, TypeError, "float dtype"),
        ({"labels": np.full(37, 50, "int32")}, ValueError, r"\[0, 50\)"),
        ({"labels": np.full(37, -1, "int32")}, ValueError, "ignore_class"),
    ],
)
def test_errors_say_what_was_expected(change, error, words):
    (hidden, kernel, _), labels, _ = data()
    arguments = {"hidden": hidden, "kernel": kernel, "labels": labels}
    with pytest.raises(error, match=words):
        linear_cross_entropy(**{**arguments, **change})


def test_labels_out_of_range():
    """Of weight zero they do not count; else a compiled program says NaN."""
    floats, labels, weights = data()
    labels[weights == 0] = -1
    good = ops.convert_to_tensor(labels)
    labels = np.where(np.arange(TOKENS) == 1, VOCABULARY, labels)
    bad, w = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights)

    def fn(y, *floats):
        return weighted_loss(
            floats[0], floats[1:], y, w, Loss(chunk_size=9), None
        )[0]

    found = derivative(functools.partial(fn, good), floats, MODES[-1])
    assert all(np.isfinite(x).all() for x in found)
    found = derivative(functools.partial(fn, bad), floats, MODES[-1])
    assert np.isnan(found[0])
