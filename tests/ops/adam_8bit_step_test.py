"""The free functions of one step, against NumPy in float64."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops import dequantize_8bit
from keras_efficient.ops import lion_8bit_step
from keras_efficient.ops import quantize_8bit
from keras_efficient.ops import sgd_8bit_step

# private: the noise is tested with MicroAdam, where it comes from
from keras_efficient.ops.uniform_noise import uniform_noise
from tests.compilers import compiled

SHAPES = [(1,), (123,), (31,), (32,), (33,), (4097,), (3, 3, 5, 7), (64, 48)]


def stepper(fn):
    """Compile it, into a graph on TensorFlow: tests take hundreds of steps."""
    step_fn = compiled(fn, "graph")
    # Each number would be a graph of its own.
    return lambda *args: step_fn(*map(tensor, args))


def tensor(x):
    return ops.cast(x, "int32") if isinstance(x, int) else x


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def to_numpy(tensors):
    return [ops.convert_to_numpy(x).astype("float64") for x in tensors]


# The oracle keeps a tensor as a list of groups of (up to) 32 entries.


def cut(x):
    x = np.asarray(x, "float64")
    last = x.shape[-1]
    rows = x.reshape(-1, last)
    if math.ceil(last / 32) * 32 > 1.2 * last:
        rows = x.reshape(1, -1)
    return [
        row[start : start + 32]
        for row in rows
        for start in range(0, len(row), 32)
    ]


def round_root(s, noise):
    """Return the number in float16 below the root of s, or the next."""
    mantissa, exponent = math.frexp(math.sqrt(s))
    unit = 2.0 ** max(exponent - 11, -24)
    return math.floor(mantissa * 2.0**exponent / unit + noise) * unit


def round_moment(groups, signed, noise):
    rounded = []
    for x, n in zip(groups, noise, strict=True):
        r = x if signed else np.sqrt(x)
        s = round_root(np.abs(r).max(), n) ** 2
        ratio = np.clip(r / s, -1, 1) if s else 0 * r
        if signed:
            y = np.floor(254 * ratio / (1 + np.abs(ratio)) + 0.5) / 127
            rounded.append(s * y / (2 - np.abs(y)))
        else:
            codes = np.maximum(np.floor(255 * ratio + 0.5), r > 0)
            rounded.append((codes * s / 255) ** 2)
    return rounded


class AdamOracle:
    def __init__(self, shape, beta_1, beta_2, epsilon):
        self.m, self.v = cut(np.zeros(shape)), cut(np.zeros(shape))
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def step(self, gradient, t, noise):
        b_1, b_2 = self.beta_1, self.beta_2
        g = cut(gradient)
        pairs = zip(self.m, g, strict=True)
        m = [b_1 * m + (1 - b_1) * g for m, g in pairs]
        pairs = zip(self.v, g, strict=True)
        v = [b_2 * v + (1 - b_2) * g**2 for v, g in pairs]
        self.m = round_moment(m, True, [0.5] * len(m))
        self.v = round_moment(v, False, noise)
        u = [
            m / (1 - b_1**t) / (np.sqrt(v / (1 - b_2**t)) + self.epsilon)
            for m, v in zip(m, v, strict=True)
        ]
        return np.concatenate(u)


def zero_state(shape):
    state = []
    for dtype in ("int8", "uint8"):
        codes = ops.zeros(shape, dtype=dtype)
        _, scale = quantize_8bit(ops.zeros(shape))
        state += [codes, scale]
    return Adam8bitState(*state)


def close_but_for_ties(actual, expected, atol):
    """A code next to a tie may go the other way in float32."""
    far = np.abs(actual - expected) > atol
    return far.sum() <= max(1, 0.02 * far.size)


def gradients_of(t):
    """Return arrays and tensors of all shapes, which share a program."""
    arrays = [normal(*shape, seed=t) for shape in SHAPES]
    return arrays, list(map(ops.convert_to_tensor, arrays))


def test_adam_equations():
    options = {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}
    seeds = [7 * (len(shape) > 1) for shape in SHAPES]
    oracles = [AdamOracle(shape, **options) for shape in SHAPES]
    states = [zero_state(shape) for shape in SHAPES]

    @stepper
    def step_fn(gradients, states, step):
        """Return updates, states, their moments and the noise of the scales."""
        results = []
        for g, state, seed in zip(gradients, states, seeds):
            u, state = adam_8bit_step(g, state, step, seed=seed, **options)
            m = dequantize_8bit(state.momentum_codes, state.momentum_scale)
            v = dequantize_8bit(state.velocity_codes, state.velocity_scale)
            places = state.velocity_scale.shape
            noise = uniform_noise(places, ops.cast(step, "int32"), seed)
            results.append((state, u, m, v, noise))
        return results

    for t in range(1, 21):
        gradients, tensors = gradients_of(t)
        results = step_fn(tensors, states, t)
        states = [Adam8bitState(*state) for state, *_ in results]
        for i, shape in enumerate(SHAPES):
            u, m, v, noise = (x.reshape(-1) for x in to_numpy(results[i][1:]))
            expected = oracles[i].step(gradients[i], t, noise)
            assert close_but_for_ties(u, expected, 1e-4), shape
            m_of, v_of = map(np.concatenate, (oracles[i].m, oracles[i].v))
            assert close_but_for_ties(m, m_of, 1e-5), shape
            assert close_but_for_ties(v, v_of, 1e-5), shape
            # never further than what one code moves
            np.testing.assert_allclose(
                u, expected, 0.1, 0.1, err_msg=str(shape)
            )


@pytest.mark.parametrize("shape", SHAPES[-3:], ids=str)
def test_adam_8bit_stays_near_adam(shape):
    m = v = np.zeros(shape)
    state, errors = zero_state(shape), []
    step_fn = stepper(adam_8bit_step)
    for t in range(1, 21):
        gradient = normal(*shape, seed=t)
        u, state = step_fn(ops.convert_to_tensor(gradient), state, t)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient.astype("float64") ** 2
        exact = m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t))
        errors.append(to_numpy([u])[0] - exact)
    assert np.sqrt(np.mean(np.square(errors))) < 0.03


def lion_oracle(g, m, beta_1, beta_2):
    return np.sign(beta_1 * m + (1 - beta_1) * g), beta_2 * m + (1 - beta_2) * g


def sgd_oracle(g, m, momentum, nesterov):
    m = momentum * m + g
    return momentum * m + g if nesterov else m, m


@pytest.mark.parametrize(
    "fn, oracle, options",
    [
        (lion_8bit_step, lion_oracle, {"beta_1": 0.8, "beta_2": 0.95}),
        (sgd_8bit_step, sgd_oracle, {"momentum": 0.8, "nesterov": False}),
        (sgd_8bit_step, sgd_oracle, {"momentum": 0.7, "nesterov": True}),
    ],
    ids=["lion", "sgd", "nesterov"],
)
def test_equations_of_one_moment(fn, oracle, options):
    states = [zero_state(shape)[:2] for shape in SHAPES]
    moments = [cut(np.zeros(shape)) for shape in SHAPES]

    @stepper
    def step_fn(gradients, states):
        pairs = zip(gradients, states)
        return [fn(g, *state, **options) for g, state in pairs]

    for t in range(1, 21):
        gradients, tensors = gradients_of(t)
        updates, *states = zip(*step_fn(tensors, states))
        states = list(zip(*states))
        for i, shape in enumerate(SHAPES):
            pairs = zip(cut(gradients[i]), moments[i], strict=True)
            results = [oracle(*pair, **options) for pair in pairs]
            expected, m = (list(x) for x in zip(*results, strict=True))
            moments[i] = round_moment(m, True, [0.5] * len(m))
            actual = to_numpy([updates[i], dequantize_8bit(*states[i])])
            for x, y in zip(actual, (expected, moments[i]), strict=True):
                y = np.concatenate(y)
                assert close_but_for_ties(x.reshape(-1), y, 1e-5), shape


def test_dtypes_and_shapes():
    shape = (5, 64)
    step_fn = stepper(adam_8bit_step)
    u, state = step_fn(ops.ones(shape), zero_state(shape), 1)
    actual = [
        (tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
        for x in (u, *state)
    ]
    assert actual == [
        (shape, "float32"),
        *((shape, "int8"), ((5, 2), "float16")),
        *((shape, "uint8"), ((5, 2), "float16")),
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradient_is_computed_in_float32(dtype):
    gradient = ops.cast(normal(5, 64), dtype)
    step_fn = stepper(adam_8bit_step)
    half = step_fn(gradient, zero_state((5, 64)), 1)
    full = step_fn(ops.cast(gradient, "float32"), zero_state((5, 64)), 1)
    for x, y in zip((half[0], *half[1]), (full[0], *full[1]), strict=True):
        np.testing.assert_array_equal(*to_numpy([x, y]))


def test_second_moment_follows_gradients_that_shrink():
    """Scales rounded to the nearest would stand still, at a ratio of 1.4."""
    shape, start = (2, 16, 32), np.array([1.0, 1e-18]).reshape(2, 1, 1)
    exact = np.broadcast_to(start, shape)
    gradients = 0.1 * np.sqrt(start) * normal(700, *shape, seed=3)
    codes, root = quantize_8bit(
        ops.convert_to_tensor(exact, "float32"), signed=False
    )
    state = zero_state(shape)._replace(velocity_codes=codes)
    state = state._replace(velocity_scale=root)
    step_fn = stepper(adam_8bit_step)
    for t, gradient in enumerate(gradients.astype("float32"), start=1000):
        _, state = step_fn(ops.convert_to_tensor(gradient), state, t)
        state = Adam8bitState(*state)
        exact = 0.999 * exact + 0.001 * np.square(gradient, dtype="f8")
    v = dequantize_8bit(state.velocity_codes, state.velocity_scale)
    for ratio in np.sqrt(to_numpy([v])[0] / exact):
        assert abs(np.median(ratio) - 1) < 0.05
        assert 0.85 < ratio.min() and ratio.max() < 1.15


def test_seeds_and_steps_differ():
    shape = (100, 32)
    gradient = ops.convert_to_tensor(normal(*shape))
    scales = {}
    for seed in (0, 1):
        step_fn = stepper(functools.partial(adam_8bit_step, seed=seed))
        for step in (1, 2):
            _, state = step_fn(gradient, zero_state(shape), step)
            scales[seed, step] = to_numpy([state.velocity_scale])[0]
    first = scales.pop((0, 1))
    assert all((first != other).any() for other in scales.values())


def test_faulty_entry_counts_as_zero():
    step_fn = stepper(adam_8bit_step)
    for fault in (np.nan, np.inf, -np.inf, 3e38, -2e18):
        states = [zero_state((5, 64)), zero_state((5, 64))]
        for t in range(1, 5):
            gradients = [normal(5, 64, seed=t), normal(5, 64, seed=t)]
            if t == 2:
                gradients[0][2, 3], gradients[1][2, 3] = fault, 0.0
            for i in range(2):
                gradient = ops.convert_to_tensor(gradients[i])
                u, state = step_fn(gradient, states[i], t)
                states[i] = Adam8bitState(*state)
                gradients[i] = to_numpy([u, *state])
            for x, y in zip(*gradients, strict=True):
                assert np.isfinite(x).all(), fault
                np.testing.assert_array_equal(x, y, err_msg=str(fault))


def test_gradients_of_every_size():
    """What epsilon does not stop stays near Adam, up to a scale of 4e9."""
    sizes = [0.0, 1e-30, 1e-20, 1e-16, 1e-12, 1e-7, 1.0, 1e9, 9e17]
    shape, epsilon = (len(sizes), 4, 64), 1e-12
    state = zero_state(shape)
    step_fn = stepper(lambda g, s, t: adam_8bit_step(g, s, t, epsilon=epsilon))
    m = v = np.zeros(shape)
    for t in range(1, 6):
        gradient = 1.5 + normal(*shape, seed=t).clip(-1, 1)
        gradient = gradient * np.reshape(sizes, (-1, 1, 1))
        gradient = gradient.astype("float32")
        u, state = step_fn(ops.convert_to_tensor(gradient), state, t)
        state = Adam8bitState(*state)
        g = gradient.astype("float64")
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        exact = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)
        u, *parts = to_numpy([u, *state])
        assert all(np.isfinite(x).all() for x in (u, *parts))
        assert np.abs(u).max() < 4
        for x, y, size in zip(u, exact, sizes):
            if size <= 1e9:  # scales have few digits below 4e-9
                rtol = 0.05 if size >= 1e-7 else 0.35
                np.testing.assert_allclose(x, y, rtol, 0.02, err_msg=str(size))


def test_small_entries_beside_a_large_one_make_no_large_steps():
    """A second moment of code 0 would leave the step without a bound."""
    shape, state = (8, 32), zero_state((8, 32))
    step_fn = stepper(adam_8bit_step)
    size = np.full(shape, 1.0 / 600, "float32")
    size[:, 0] = 1.0
    largest = 0.0
    for t in range(1, 200):
        gradient = ops.convert_to_tensor(size * normal(*shape, seed=t))
        u, state = step_fn(gradient, state, t)
        state = Adam8bitState(*state)
        largest = max(largest, np.abs(to_numpy([u])[0]).max())
    assert largest < 8
