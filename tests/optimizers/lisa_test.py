"""LISA: a few blocks at a time, with state for these alone."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.optimizers import LISA
from keras_efficient.optimizers import Adam8bit
from keras_efficient.utils import optimizer_state_bytes
from tests.marks import once
from tests.optimizers.table import BACKEND
from tests.optimizers.table import check_close
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal
from tests.optimizers.table import placed
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

NAMES = ["head/kernel"]
NAMES += [f"block_{i}/{name}" for i in range(4) for name in ("kernel", "bias")]
BLOCKS = [f"block_{i}" for i in range(4)]


def make_variables(dtype="float32", scale=1.0):
    shapes = [(3, 2)] + [(5, 5), (5,)] * 4
    return [
        placed(shape, path, i, dtype=dtype)
        for i, (shape, path) in enumerate(zip(shapes, NAMES))
    ]


def make_gradients(step):
    return [
        normal(*v.shape, seed=[7, step, i])
        for i, v in enumerate(make_variables())
    ]


def active_in(optimizer):
    return ops.convert_to_numpy(optimizer.active()).tolist()


def block_of(path):
    return int(path[6]) if path.startswith("block") else None


def oracle(values, gradients, active, state, t, rate, decay, clip):
    """One step in NumPy; `state` has what is kept, by the variable's index."""
    mask = [block_of(path) in (None, *active) for path in NAMES]
    norm = np.sqrt(sum(np.sum(g**2) for g, m in zip(gradients, mask) if m))
    factor = min(1.0, clip / norm)
    for i, (x, g, m) in enumerate(zip(values, gradients, mask)):
        if not m:
            continue
        first, second, count = state.get(i, (0.0, 0.0, 0))
        if block_of(NAMES[i]) is not None and t == 1:
            first, second, count = 0.0, 0.0, 0
        g, count = factor * g, count + 1
        first = 0.9 * first + 0.1 * g
        second = 0.99 * second + 0.01 * g * g
        state[i] = first, second, count
        update = first / (1 - 0.9**count)
        update /= np.sqrt(second / (1 - 0.99**count)) + 1e-7
        values[i] = x - rate * (decay * x + update)
    return values


@pytest.mark.parametrize("order", ["cycle", "uniform"])
def test_it_computes_its_equations(order):
    """Masked before it is clipped, decay of what is active alone, moments and
    their corrections of each visit; what is not active keeps its bits."""
    optimizer = LISA(
        0.1,
        blocks=BLOCKS,
        active_blocks=2,
        period=3,
        order=order,
        beta_2=0.99,
        weight_decay=0.1,
        global_clipnorm=2.0,
    )
    variables = make_variables()
    step_fn = stepper(optimizer, variables)
    values = [x.astype("float64") for x in to_numpy(variables)]
    state, seen = {}, []
    for step in range(8):
        active = active_in(optimizer)
        before = to_numpy(variables)
        after = step_fn(make_gradients(step))
        t = step % 3 + 1
        values = oracle(
            values, make_gradients(step), active, state, t, 0.1, 0.1, 2.0
        )
        check_close(after, values, 1e-5)
        moved = {
            block_of(path)
            for path, a, b in zip(NAMES, before, after)
            if (a != b).any()
        }
        assert moved == {None, *active} and len(set(active)) == 2
        seen += [active] if t == 1 else []
    if order == "cycle":
        assert sorted(seen[0] + seen[1]) == [0, 1, 2, 3]


def test_blocks_that_are_all_active_are_trained_by_adam():
    """Also with an odd number of blocks, and accumulated gradients."""
    results = []
    for make in (
        Adam8bit,
        lambda **kwargs: LISA(
            blocks=BLOCKS, active_blocks=4, period=99, **kwargs
        ),
    ):
        optimizer = make(
            learning_rate=0.1,
            weight_decay=0.1,
            clipnorm=1.0,
            gradient_accumulation_steps=2,
        )
        variables = make_variables()
        step_fn = stepper(optimizer, variables)
        for step in range(8):
            step_fn(make_gradients(step))
        results.append(to_numpy(variables))
    check_close(*results, 1e-6)


@once
def test_each_cycle_has_each_block():
    """When slots do not divide blocks, some come again in its last turn."""
    for chosen in (1, 3):
        optimizer = LISA(
            0.1, blocks=BLOCKS, active_blocks=chosen, period=2, seed=5
        )
        optimizer.build(make_variables())
        turns = []
        for step in range(0, 32, 2):
            optimizer.iterations.assign(step)
            turns.append(active_in(optimizer))
            assert len(set(turns[-1])) == chosen
        length = {1: 4, 3: 2}[chosen]
        for i in range(0, 16, length):
            assert set(sum(turns[i : i + length], [])) == {0, 1, 2, 3}
        assert len(set(map(str, turns))) > 2


def body_bytes(optimizer):
    slots = keras.tree.flatten(optimizer._slots)
    return sum(np.prod(v.shape) * np.dtype(v.dtype).itemsize for v in slots)


@once
def test_state_is_that_of_the_slots():
    size = 4 * (64 * 64 + 64)  # of the blocks
    shapes = [(64, 64), (64,)] * 4
    total = {}
    for moments in ("float32", "8bit"):
        variables = [
            placed(shape, path, 0) for shape, path in zip(shapes, NAMES[1:])
        ]
        optimizer = LISA(
            0.1, blocks=BLOCKS, active_blocks=1, moments=moments, min_size=64
        )
        optimizer.build(variables)
        total[moments] = body_bytes(optimizer)
        assert optimizer_state_bytes(optimizer) == total[moments] + 8
    assert total["float32"] == 8 * size / 4
    np.testing.assert_allclose(total["8bit"], 2.125 * size / 4, rtol=1e-2)


def test_slots_of_8_bits_follow_those_of_float32():
    results = []
    for moments in ("float32", "8bit"):
        variables = make_variables()
        optimizer = LISA(
            0.01, blocks=BLOCKS, period=4, moments=moments, min_size=16
        )
        step_fn = stepper(optimizer, variables)
        for step in range(8):
            step_fn(make_gradients(step))
        results.append(to_numpy(variables))
    start = to_numpy(make_variables())
    for a, b, first in zip(*results, start):
        moved = np.sqrt(np.mean((a - first) ** 2))
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.1 * moved


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits(dtype):
    """They move as those in float32 do, and keep their bits when frozen."""
    results = []
    for kind in ("float32", dtype):
        variables = make_variables(kind)
        if kind == "float32":  # from the same start
            for v, x in zip(variables, to_numpy(make_variables(dtype))):
                v.assign(x)
        optimizer = LISA(
            1e-3, blocks=BLOCKS, active_blocks=1, period=2, weight_decay=0.1
        )
        step_fn = stepper(optimizer, variables)
        for step in range(6):
            active = active_in(optimizer)
            before = to_numpy(variables)
            after = step_fn([g.astype("float16") for g in make_gradients(step)])
            for path, a, b in zip(NAMES, before, after):
                if block_of(path) not in (None, *active):
                    np.testing.assert_array_equal(a, b)
        results.append(after)
    check_close(*results, 1e-2)


def test_a_variable_without_gradient_stays():
    variables = make_variables()
    optimizer = LISA(0.1, blocks=BLOCKS, active_blocks=4, weight_decay=0.1)
    optimizer.build(variables)
    before = to_numpy(variables)
    gradients = [ops.convert_to_tensor(g) for g in make_gradients(0)]
    gradients[3] = None  # block_1/kernel
    optimizer.apply(gradients, variables)
    moved = [(a != b).any() for a, b in zip(before, to_numpy(variables))]
    assert moved == [i != 3 for i in range(9)]


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    encoder = keras.Sequential(
        [layers.Dense(6, "tanh", name=name) for name in BLOCKS], name="encoder"
    )
    return keras.Model(inputs, layers.Dense(1, name="head")(encoder(inputs)))


def test_fit_without_retraces_and_resumed_in_a_period(tmp_path, monkeypatch):
    """In a file, paths lose what they begin with: the record keeps blocks."""
    calls, step_slot = [], LISA._step_slot

    def counted(self, *args):
        calls.append(args)
        return step_slot(self, *args)

    monkeypatch.setattr(LISA, "_step_slot", counted)
    x = normal(64, 6)
    y = x[:, :1]
    options = {"jit_compile": True} if BACKEND == "tensorflow" else {}
    model = network()
    names = [f"encoder/{name}" for name in BLOCKS]
    model.compile(LISA(1e-2, blocks=names, period=3), "mse", **options)
    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    traced = len(calls)
    model.fit(x, y, batch_size=8, verbose=0)
    if BACKEND != "torch":
        assert len(calls) == traced
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check_equal(loaded.optimizer.variables, model.optimizer.variables)
    for m in (model, loaded):
        m.compile(m.optimizer, "mse", **options)
        m.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    check_equal(loaded.get_weights(), model.get_weights())


@once
def test_what_cannot_be_right_is_refused():
    for options, match in (
        ({"blocks": []}, "`active_blocks` must"),
        ({"active_blocks": 0}, "`active_blocks` must"),
        ({"period": 0}, "`period` must"),
        ({"order": "random"}, "`order` must"),
        ({"moments": "4bit"}, "`moments` must"),
    ):
        with pytest.raises(ValueError, match=match):
            LISA(**{"blocks": BLOCKS, **options})
    for blocks, match in (
        (["block_0", "block_9"], r"none among.*block_0/kernel"),
        (["block_0", "block_0/kernel"], "must not overlap.*block_0/kernel"),
        (["block_0", "head"], "must be alike.*head/kernel"),
    ):
        optimizer = LISA(0.1, blocks=blocks)
        with pytest.raises(ValueError, match=match):
            optimizer.build(make_variables())
        assert not optimizer.built
