"""SelectedAdam: a fixed part of the weights, with state for these alone."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops.newton_schulz import newton_schulz
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import SelectedAdam
from keras_efficient.optimizers.selected_adam import POLAR
from tests.marks import once
from tests.optimizers.table import check_close
from tests.optimizers.table import normal
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy

BLOCK, SIZE = 16, 100  # the last block has 4 entries


def chosen(x, select="smallest", k=2):
    """A mask of k entries of each block, in NumPy."""
    mask = np.zeros(x.size, bool)
    for start in range(0, x.size, BLOCK):
        block = np.abs(x.reshape(-1)[start : start + BLOCK])
        order = np.argsort(block if select == "smallest" else -block)
        mask[start + order[:k]] = True
    return mask.reshape(x.shape)


def variables(dtype="float32"):
    return [
        keras.Variable(normal(20, 5), dtype, name="kernel"),
        keras.Variable(normal(3), dtype, name="bias"),
    ]


def gradients(step):
    return [normal(20, 5, seed=[1, step]), normal(3, seed=[2, step])]


def make(**options):
    options = {"density": 0.125, "block_size": BLOCK, "min_size": 50, **options}
    return SelectedAdam(0.1, **options)


@pytest.mark.parametrize("select", ["smallest", "largest"])
def test_it_is_adam_on_what_is_selected(select):
    """With decay and a norm of these alone; the others keep their bits."""
    options = {"weight_decay": 0.1, "global_clipnorm": 1.0}
    ours, theirs = variables(), variables()
    mask = chosen(to_numpy(ours)[0], select)
    step_fn = stepper(make(select=select, **options), ours)
    adam_step_fn = stepper(Adam8bit(0.1, **options), theirs)
    start = to_numpy(ours)[0]
    for step in range(6):
        kernel, bias = gradients(step)
        after = step_fn([kernel, bias])
        expected = adam_step_fn([kernel * mask, bias])
        expected[0] = np.where(mask, expected[0], start)
        check_close(after, expected, 1e-5)
    np.testing.assert_array_equal(after[0] != start, mask)
    assert mask.sum() == 14


def test_all_selected_is_adam():
    ours, theirs = variables(), variables()
    step_fn = stepper(make(density=1.0, weight_decay=0.1), ours)
    adam_step_fn = stepper(Adam8bit(0.1, weight_decay=0.1), theirs)
    for step in range(4):
        after = step_fn(gradients(step))
        check_close(after, adam_step_fn(gradients(step)), 1e-6)


def test_several_tensors_step_as_each_by_itself():
    """On PyTorch their blocks make one tensor; one of these does not decay."""
    shapes = [(20, 5), (7, 9), (64,), (3, 4, 16)]
    joined = [
        keras.Variable(normal(*shape, seed=i)) for i, shape in enumerate(shapes)
    ]
    alone = [keras.Variable(x) for x in to_numpy(joined)]
    steps = []
    for group in (joined, *([x] for x in alone)):
        optimizer = make(weight_decay=0.1, rank_penalty=0.1)
        if group[0] is joined[0] or group[0] is alone[0]:
            optimizer.exclude_from_weight_decay(group[:1])
        steps.append(stepper(optimizer, group))
    for step in range(3):
        g = [normal(*s, seed=[i, step]) for i, s in enumerate(shapes)]
        after = steps[0](g)
        for x, y, step_fn in zip(after, g, steps[1:]):
            check_close([x], step_fn([y]), 1e-6)


def test_what_has_grown_is_frozen_when_it_is_selected_again():
    ours = variables()
    step_fn = stepper(make(reselect_at=3, density=0.25), ours)
    start = to_numpy(ours)[0]
    first = chosen(start, k=4)
    for step in range(3):
        middle = step_fn(gradients(step))[0]
    np.testing.assert_array_equal(middle != start, first)
    second = first & chosen(middle, k=4)
    assert 0 < second.sum() < first.sum()
    for step in range(3, 6):
        after = step_fn(gradients(step))[0]
    np.testing.assert_array_equal(after != middle, second)


def test_rank_penalty_is_the_gradient_of_the_nuclear_norm():
    x = normal(24, 40)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    polar = ops.convert_to_numpy(newton_schulz(ops.array(x), *POLAR))
    np.testing.assert_allclose(polar, u @ v, atol=1e-3)
    # One step with a gradient of zero has its signs.
    (variable,) = variables()[:1]
    mask, before = chosen(to_numpy([variable])[0]), to_numpy([variable])[0]
    step_fn = stepper(make(rank_penalty=0.1), [variable])
    (after,) = step_fn([np.zeros((20, 5), "float32")])
    u, _, v = np.linalg.svd(before * mask, full_matrices=False)
    moved = (after - before)[mask]
    np.testing.assert_allclose(moved, -0.1 * np.sign((u @ v)[mask]), rtol=1e-2)


@once
def test_random_places_and_bytes():
    x = keras.Variable(normal(1000, 256), name="kernel")
    optimizer = SelectedAdam(0.1, density=0.1, select="random")
    step_fn = stepper(optimizer, [x])
    before = to_numpy([x])[0]
    (after,) = step_fn([normal(1000, 256, seed=1)])
    counts = (after != before).sum(axis=1)  # a block is a row
    assert (counts == 26).all()
    places = np.argwhere(after != before)[:, 1]
    assert np.abs(np.bincount(places, minlength=256) - 101.5).max() < 60
    state = sum(
        np.prod(v.shape) * np.dtype(v.dtype).itemsize
        for v in state_of(optimizer)
    )
    assert state == 26 * 1000 * 9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits(dtype):
    ours = variables(dtype)
    mask, start = chosen(to_numpy(ours)[0]), to_numpy(ours)[0]
    step_fn = stepper(make(weight_decay=0.1), ours)
    for step in range(3):
        after = step_fn([g.astype("float16") for g in gradients(step)])
    assert (after[0] == start)[~mask].all()
    assert (after[0] != start)[mask].mean() > 0.9


@once
def test_what_cannot_be_right_is_refused():
    for options in (
        {"density": 0.0},
        {"density": 1.5},
        {"select": "best"},
        {"block_size": 2**16},
        {"rank_penalty": -1.0},
        {"reselect_at": 5, "select": "random"},
        {"beta_1": 1.0},
        {"epsilon": 0.0},
    ):
        name = next(iter(options))
        with pytest.raises(ValueError, match=f"`{name}` must be.*Received"):
            SelectedAdam(**options)
