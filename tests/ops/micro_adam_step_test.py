import collections
import functools
import math

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from keras import ops

from keras_efficient.ops import MicroAdamState
from keras_efficient.ops import micro_adam_step
from keras_efficient.ops.uniform_noise import uniform_noise
from tests.compilers import compiled

MASK = 2**32 - 1

Layout = collections.namedtuple("Layout", ("block", "bucket", "k", "window"))
SMALL = Layout(block=256, bucket=64, k=3, window=6)
LARGE = Layout(block=4096, bucket=128, k=41, window=5)
DENSE = Layout(block=64, bucket=32, k=64, window=4)


# The oracle: dense vectors instead of rings, loops over blocks and buckets.
# It keeps the error feedback in float32, operation by operation, because a
# digit more there would choose other entries and other codes; the moments and
# the update are in float64.


def round_to_bfloat16(x):
    """Round to eight binary digits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 2**8) / 2**8, exponent).astype("float32")


def mix(x):
    """Finalizer of MurmurHash3, in whole numbers that do not wrap around."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & MASK
    x ^= x >> 13
    x = x * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def noise_at(position, step, seed):
    start = mix((step + mix(seed)) & MASK)
    return (mix((position + start) & MASK) >> 8) / 2**24


def round_to_grid(bucket, noise):
    """Quantize to four bits and back."""
    low, high = bucket.min(), bucket.max()
    low = round_to_bfloat16(low - np.float32(2**-8) * abs(low))
    high = round_to_bfloat16(high + np.float32(2**-8) * abs(high))
    unit = (high - low) * np.float32(1 / 15)
    if unit < 2.0**-126:
        return np.full_like(bucket, low)
    steps = (bucket - low) * (np.float32(1) / unit) + noise
    return low + np.clip(np.floor(steps), 0, 15) * unit


class Oracle:
    def __init__(self, size, layout, value_dtype, rounding, alpha, seed=0):
        self.error = np.zeros(size, "float32")
        self.window = []  # of (step, dense vector)
        self.velocity = np.zeros(size)  # each entry that of its block
        self.alpha = alpha
        self.layout, self.value_dtype = layout, value_dtype
        self.rounding, self.seed = rounding, seed

    def feed(self, gradient, step, beta_2):
        g = gradient.astype("float32").reshape(-1)
        a = g + self.error
        chosen = np.zeros_like(a)
        for start in range(0, a.size, self.layout.block):
            block = a[start : start + self.layout.block]
            largest = np.argsort(-np.abs(block))[: self.layout.k]
            chosen[start + largest] = block[largest]
            block = slice(start, start + self.layout.block)
            square = np.mean(g[block].astype("float64") ** 2)
            self.velocity[block] *= beta_2
            self.velocity[block] += (1 - beta_2) * square
        if self.value_dtype == "bfloat16":
            chosen = round_to_bfloat16(chosen)
        self.window.append((step, chosen))
        self.window = self.window[-self.layout.window :]
        self.rest = a - chosen
        self.error = self.rounded(np.float32(1 - self.alpha) * self.rest, step)

    def rounded(self, rest, step):
        bucket_size = self.layout.bucket
        padded = np.append(rest, np.zeros(-rest.size % bucket_size, "float32"))
        noise = np.full(padded.size, 0.5, "float32")
        if self.rounding == "stochastic":
            noise = [noise_at(i, step, self.seed) for i in range(padded.size)]
        parts = zip(
            padded.reshape(-1, bucket_size),
            np.array(noise, "float32").reshape(-1, bucket_size),
            strict=True,
        )
        return np.concatenate([round_to_grid(*part) for part in parts])[
            : rest.size
        ]

    def update(self, step, beta_1, beta_2, epsilon, bias_correction):
        v_hat = self.velocity / (1 - beta_2**step)
        z_1 = z_2 = total_1 = total_2 = 0.0
        for written, row in self.window:
            w_1, w_2 = beta_1 ** (step - written), beta_2 ** (step - written)
            total_1, total_2 = total_1 + w_1, total_2 + w_2
            z_1 = z_1 + w_1 * row.astype("float64")
            square = row.astype("float64") ** 2
            if bias_correction == "window":
                square = np.where(row == 0, v_hat, square)
            z_2 = z_2 + w_2 * square
        c_1, c_2 = {
            "full": (
                (1 - beta_1) / (1 - beta_1**step),
                (1 - beta_2) / (1 - beta_2**step),
            ),
            "window": (1 / total_1, 1 / total_2),
        }[bias_correction]
        u = c_1 * z_1 / (np.sqrt(c_2 * z_2) + epsilon)
        return u + self.alpha * self.rest / (np.sqrt(v_hat) + epsilon)


def zero_state(size, layout, value_dtype="bfloat16"):
    blocks = math.ceil(size / layout.block)
    buckets = math.ceil(size / layout.bucket)
    entries = (layout.window, blocks, layout.k)
    index_dtype = "uint8" if layout.block <= 256 else "int16"
    slots = MicroAdamState(
        indices=(entries, index_dtype),
        values=(entries, value_dtype),
        written=(layout.window, "int32"),
        codes=((buckets, layout.bucket // 2), "uint8"),
        low=((buckets, 1), "bfloat16"),
        high=((buckets, 1), "bfloat16"),
        velocity=((blocks, 1), "float32"),
    )
    return MicroAdamState(
        *(
            ops.convert_to_tensor(np.zeros(shape), dtype)
            for shape, dtype in slots
        )
    )


@functools.cache
def stepper(layout, **options):
    """Return a function from gradient, state and step to updates and state.

    There is one update for each bias correction.
    """

    @compiled
    def step_fn(gradient, state, step):
        results = [
            micro_adam_step(
                gradient,
                MicroAdamState(*state),
                step,
                block_size=layout.block,
                bias_correction=bias_correction,
                **options,
            )
            for bias_correction in ("full", "window")
        ]
        return [update for update, _ in results], results[0][1]

    def run(gradient, state, step):
        gradient = ops.convert_to_tensor(gradient)
        updates, new_state = step_fn(gradient, state, ops.cast(step, "int32"))
        for old, new in zip(state, new_state, strict=True):
            assert tuple(old.shape) == tuple(new.shape)
            assert dtype_of(old) == dtype_of(new)
        assert [dtype_of(update) for update in updates] == ["float32"] * 2
        full, window = map(ops.convert_to_numpy, updates)
        return {"full": full, "window": window}, new_state

    return run


def dtype_of(x):
    return keras.backend.standardize_dtype(x.dtype)


def error_feedback(state, size):
    codes, low, high = (
        ops.convert_to_numpy(x) for x in (state.codes, state.low, state.high)
    )
    low, high = low.astype("float32"), high.astype("float32")
    codes = np.concatenate([codes >> 4, codes & 15], axis=-1)
    error = low + codes.astype("float32") * ((high - low) * np.float32(1 / 15))
    return error.reshape(-1)[:size]


def dense_rows(state, size, layout):
    """Return a dict from the step that wrote a row to its dense vector."""
    indices, values, written = (
        ops.convert_to_numpy(x)
        for x in (state.indices, state.values, state.written)
    )
    rows = {}
    for step, index, value in zip(written, indices, values, strict=True):
        dense = np.zeros((index.shape[0], layout.block), "float32")
        np.put_along_axis(
            dense, index.astype("int64"), value.astype("float32"), axis=-1
        )
        if step:
            rows[int(step)] = dense.reshape(-1)[:size]
    return rows


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def check_against_oracle(
    shape,
    layout,
    steps=range(1, 11),
    value_dtype="bfloat16",
    rounding="nearest",
    beta_2=0.99,
    alpha=0.25,
    rtol=1e-5,
    seed=0,
):
    """Compare state and update, with either bias correction, step by step."""
    betas = {"beta_1": 0.9, "beta_2": beta_2, "epsilon": 1e-7}
    size = math.prod(shape)
    oracle = Oracle(size, layout, value_dtype, rounding, alpha, seed)
    state = zero_state(size, layout, value_dtype)
    run = stepper(layout, rounding=rounding, alpha=alpha, seed=seed, **betas)
    for step in steps:
        gradient = normal(*shape, seed=step)
        updates, state = run(gradient, state, step)
        oracle.feed(gradient, step, beta_2)
        np.testing.assert_array_equal(error_feedback(state, size), oracle.error)
        rows = dense_rows(state, size, layout)
        assert sorted(rows) == [written for written, _ in oracle.window]
        for written, expected in oracle.window:
            # A compiler may round a product and a sum once instead of twice.
            np.testing.assert_allclose(
                rows[written],
                expected,
                rtol=0.0 if value_dtype == "bfloat16" else 3e-7,
            )
        for bias_correction, update in updates.items():
            expected = oracle.update(
                step, bias_correction=bias_correction, **betas
            )
            assert update.shape == shape
            # The two terms of the update may cancel.
            atol = max(2e-6, 0.1 * rtol)
            np.testing.assert_allclose(
                update, expected.reshape(shape), rtol, atol
            )


@pytest.mark.parametrize(
    "shape",
    [(1,), (123,), (255,), (256,), (257,), (4097,), (3, 3, 5, 7)],
    ids=str,
)
def test_nearest_rounding(shape):
    check_against_oracle(shape, SMALL)


@pytest.mark.parametrize(
    "shape, layout, value_dtype",
    [
        ((4097,), LARGE, "bfloat16"),
        ((130,), DENSE, "float32"),
        ((17, 31), SMALL, "float32"),
    ],
    ids=["large", "dense", "small"],
)
def test_stochastic_rounding(shape, layout, value_dtype):
    check_against_oracle(
        shape,
        layout,
        steps=range(1, 9),
        value_dtype=value_dtype,
        rounding="stochastic",
        seed=5,
    )


def test_algorithm_of_the_paper():
    check_against_oracle((4097,), SMALL, alpha=0.0)


def test_ages_count_the_steps_that_the_tensor_was_skipped():
    steps = [2, 3, 7, 8, 9, 15, 16, 30, 31, 33, 90, 91, 500]
    check_against_oracle((257,), SMALL, steps=steps)


def test_default_beta_2():
    # 1 - 0.999^t loses five of the seven digits of float32 when t is small.
    check_against_oracle((257,), SMALL, beta_2=0.999, rtol=5e-5)


def test_last_place_of_the_largest_block():
    layout = Layout(block=2**15, bucket=64, k=1, window=2)
    gradient = np.zeros(2**15 + 3, "float32")
    gradient[[2**15 - 1, 2**15 + 2]] = -2.0, 3.0
    run = stepper(layout, rounding="nearest")
    updates, state = run(gradient, zero_state(gradient.size, layout), 1)
    assert dtype_of(state.indices) == "int16"
    np.testing.assert_array_equal(
        dense_rows(state, gradient.size, layout)[1], gradient
    )
    for update in updates.values():
        np.testing.assert_allclose(update, np.sign(gradient), rtol=5e-5)


def test_noise_is_the_same_everywhere():
    """Values from the hash above in unbounded whole numbers."""
    noise_fn = compiled(lambda step, seed: uniform_noise((2, 3), step, seed))
    expected = {
        (1, 0): [3141468, 10651663, 2594507, 13399178, 14222017, 1756554],
        (7, 3): [7227846, 666918, 5377178, 3885307, 8769787, 6424114],
        (2**31 - 1, 12345): [
            *(10333445, 4682978, 12541691, 8219566, 16079718, 11730898)
        ],
    }
    for (step, seed), values in expected.items():
        noise = ops.convert_to_numpy(noise_fn(ops.cast(step, "int32"), seed))
        assert noise.dtype == "float32"
        assert (noise * 2**24).reshape(-1).tolist() == values
        computed = [noise_at(i, step, seed) * 2**24 for i in range(6)]
        assert computed == values


def test_noise_is_uniform_and_differs_by_step_and_tensor():
    noise_fn = compiled(lambda step, seed: uniform_noise((4096,), step, seed))
    draws = [
        ops.convert_to_numpy(noise_fn(ops.cast(step, "int32"), seed))
        for step, seed in ((1, 0), (2, 0), (1, 1), (2, 1))
    ]
    draws = np.stack(draws)
    assert draws.min() >= 0 and draws.max() < 1
    sigma = (1 / 12 / draws.shape[1]) ** 0.5
    np.testing.assert_allclose(draws.mean(axis=1), 0.5, atol=5 * sigma)
    counts = np.histogram(draws, bins=16)[0] / draws.size
    np.testing.assert_allclose(counts, 1 / 16, rtol=0.1)
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 5 / draws.shape[1] ** 0.5


def test_stochastic_rounding_loses_nothing_on_average():
    layout = Layout(block=64, bucket=64, k=1, window=2)
    copies = 2570
    bucket = normal(64) * np.geomspace(1e-3, 1, 64, dtype="float32")
    gradient = np.tile(bucket, copies)

    def kept(rounding):
        run = stepper(layout, rounding=rounding, alpha=0.0)
        _, state = run(gradient, zero_state(gradient.size, layout), 1)
        rows = dense_rows(state, gradient.size, layout)
        total = rows[1] + error_feedback(state, gradient.size)
        unit = float(state.high[0, 0] - state.low[0, 0]) / 15
        return total.reshape(copies, 64).astype("float64").mean(axis=0), unit

    mean, unit = kept("stochastic")
    limit = 5 * (unit / 2) / copies**0.5
    np.testing.assert_allclose(mean, bucket, atol=limit)
    mean, unit = kept("nearest")
    assert np.abs(mean - bucket).max() > 0.4 * unit > 5 * limit


def test_half_precision_gradient_is_computed_in_float32():
    run, state = stepper(SMALL), zero_state(257, SMALL)
    gradient = ops.cast(normal(257), "bfloat16")
    half, _ = run(gradient, state, 1)
    full, _ = run(ops.cast(gradient, "float32"), state, 1)
    np.testing.assert_array_equal(half["full"], full["full"])


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf, 3e38])
def test_faulty_entry_counts_as_zero(fault):
    run = stepper(SMALL)
    states = [zero_state(257, SMALL), zero_state(257, SMALL)]
    for step in range(1, 4):
        gradients = [normal(257, seed=step), normal(257, seed=step)]
        if step == 2:
            for gradient, value in zip(gradients, (fault, 0.0), strict=True):
                gradient[[3, 256]] = value
        results = [
            run(gradient, state, step)
            for gradient, state in zip(gradients, states, strict=True)
        ]
        states = [state for _, state in results]
        np.testing.assert_equal(results[0][0], results[1][0])
        for actual, expected in zip(*states, strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(actual), ops.convert_to_numpy(expected)
            )


def test_zero_gradients_move_nothing():
    run, state = stepper(SMALL), zero_state(257, SMALL)
    for step in range(1, 4):
        updates, state = run(np.zeros(257, "float32"), state, step)
        assert not any(update.any() for update in updates.values())
        assert not error_feedback(state, 257).any()


@hypothesis.given(
    size=strategies.sampled_from([1, 257]),
    exponents=strategies.lists(
        strategies.integers(-45, 39), min_size=3, max_size=3
    ),
    faults=strategies.lists(
        strategies.tuples(
            strategies.integers(0, 10**6),
            strategies.sampled_from(
                [np.nan, np.inf, -np.inf, 3.4e38, -9.9e17, 1e-45, 0.0]
            ),
        ),
        max_size=8,
    ),
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_nothing_that_is_not_finite_enters_the_state(size, exponents, faults):
    run, state = stepper(SMALL), zero_state(size, SMALL)
    for step, exponent in enumerate(exponents, start=1):
        with np.errstate(over="ignore", under="ignore"):
            gradient = normal(size).astype("float64") * 10.0**exponent
            gradient = gradient.astype("float32")
        for place, fault in faults:
            gradient[place % size] = fault
        updates, state = run(gradient, state, step)
        assert all(np.isfinite(update).all() for update in updates.values())
        for slot in state:
            slot = ops.convert_to_numpy(slot).astype("float64")
            assert np.isfinite(slot).all()
        assert np.isfinite(error_feedback(state, size)).all()


def test_computes_with_the_values_that_the_state_holds(monkeypatch):
    """XLA on GPU leaves out casts to bfloat16 and back."""
    run, state = stepper(SMALL), zero_state(257, SMALL)
    updates, expected = run(normal(257), state, 1)
    cast = ops.cast
    monkeypatch.setattr(
        ops, "cast", lambda x, d: x if d == "bfloat16" else cast(x, d)
    )

    @compiled
    def step_fn(gradient, state):
        return micro_adam_step(gradient, MicroAdamState(*state), 1)

    update, actual = step_fn(ops.convert_to_tensor(normal(257)), state)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(actual.codes), ops.convert_to_numpy(expected.codes)
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(update), updates["window"], rtol=1e-6
    )


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="On JAX all the tests above are compiled.",
)
def test_compiled_step_is_the_step():
    import tensorflow as tf

    def step_fn(gradient, state, step):
        return micro_adam_step(gradient, MicroAdamState(*state), step)

    step_xla = tf.function(step_fn, jit_compile=True)
    expected_state = state = zero_state(257, SMALL)
    for step in range(1, 9):
        gradient = ops.convert_to_tensor(normal(257, seed=step))
        step = ops.cast(step, "int32")
        update, state = step_xla(gradient, state, step)
        expected, expected_state = step_fn(gradient, expected_state, step)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
    *integers, velocity = zip(state, expected_state, strict=True)
    for actual, expected in integers:
        np.testing.assert_array_equal(actual, expected)
    # A compiler may add the squares of a block in another order.
    np.testing.assert_allclose(*velocity, rtol=1e-6)
