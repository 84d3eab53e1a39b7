"""Bad gradients and odd tensors: nothing is poisoned, nothing crashes."""

import keras
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from tests.optimizers.table import ALGORITHMS
from tests.optimizers.table import BACKEND
from tests.optimizers.table import check_equal
from tests.optimizers.table import each_algorithm
from tests.optimizers.table import each_with_a_third
from tests.optimizers.table import make
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import normal
from tests.optimizers.table import plain_optimizer
from tests.optimizers.table import plain_stepper
from tests.optimizers.table import state_of
from tests.optimizers.table import stepper
from tests.optimizers.table import third_of_algorithms
from tests.optimizers.table import to_numpy


def check_finite(*tensors):
    for x in to_numpy(tensors):
        assert np.isfinite(x).all()


@each_algorithm
def test_faulty_gradients_never_enter_the_state(name):
    optimizer, runs = plain_optimizer(name), []
    for faults in ((np.nan, np.inf), (0.0, 0.0)):
        step_fn, variables = plain_stepper(name)
        found = []
        for step in range(6):
            gradients = make_gradients(step)
            if step in (1, 3):
                # one tensor only: the other ones go on
                places = slice(None, None, 7) if step == 1 else slice(None)
                gradients[0][places], gradients[0][:1] = faults
            found += step_fn(gradients)
            check_finite(*optimizer.variables, *variables)
        runs.append([*found, *to_numpy(state_of(optimizer))])
    check_equal(*runs)


@each_algorithm
def test_zero_gradients_move_nothing(name):
    step_fn, variables = plain_stepper(name)
    for _ in range(3):
        step_fn(make_gradients(0, scale=0.0))
    check_equal(variables, make_variables())


@each_algorithm
def test_huge_and_tiny_gradients(name):
    step_fn, variables = plain_stepper(name)
    optimizer = plain_optimizer(name)
    for scale in (1e-45, 1e-30, 1e-10, 1e10, 9e17, 3e38, 1e-20, 1e-45):
        for step in range(2):
            with np.errstate(over="ignore"):
                step_fn(make_gradients(step, scale=np.float32(scale)))
        check_finite(*optimizer.variables, *variables)


@each_with_a_third("min_size", (0, 4096))
def test_tensors_of_one_element_or_none(min_size, name):
    shapes = [(), (1,), (1, 1), (0,), (0, 5), (5, 0)]
    variables = [keras.Variable(np.ones(s, "float32")) for s in shapes]
    step_fn = stepper(make(name, min_size=min_size), variables)
    for _ in range(2):
        values = step_fn([np.ones(s, "float32") for s in shapes])
    for value, shape in zip(values, shapes, strict=True):
        assert value.shape == shape and (np.abs(value) < 1).all()


@given(
    name=st.sampled_from(ALGORITHMS),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    exponents=st.lists(st.integers(-45, 38), min_size=3, max_size=3),
    fault=st.sampled_from([0.0, np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 2**16),
)
# Compiling takes seconds for each.
@settings(
    max_examples=40 if BACKEND == "torch" else 6,
    deadline=None,
    derandomize=True,
)
def test_any_shape_dtype_and_magnitude(
    name, shape, dtype, exponents, fault, seed
):
    variable = keras.Variable(normal(*shape, seed=seed), dtype=dtype)
    optimizer = make(name, 1e-2, min_size=0)
    step_fn = stepper(optimizer, [variable])
    for step, exponent in enumerate(exponents):
        gradient = normal(*shape, seed=[seed, step]).astype("float64")
        gradient = np.clip(gradient * 10.0**exponent, -3e38, 3e38)
        gradient.flat[seed % gradient.size] += fault
        with np.errstate(over="ignore"):
            step_fn([gradient.astype("float32")])
    check_finite(*optimizer.variables, variable)
    assert variable.dtype == dtype


@each_algorithm
def test_seeds_differ_by_tensor(name):
    """Two tensors of equal gradients: what is rounded at random differs."""
    variables = [make_variables()[0], make_variables()[0]]
    optimizer, gradient = make(name), make_gradients(0)[0]
    step_fn = stepper(optimizer, variables)
    for _ in range(2):
        step_fn([gradient, gradient])
    state = to_numpy(state_of(optimizer))
    half = len(state) // 2
    random = name not in (
        *("SinkGD", "Lion8bit", "SGD8bit", "Muon8bit", "SelectedAdam"),
    )
    equal = [(a == b).all() for a, b in zip(state[:half], state[half:])]
    assert all(equal) != random


@third_of_algorithms(2)
def test_a_parameter_of_each_size_around_a_block(name):
    sizes = [63, 64, 65, 255, 256, 257, 4095, 4096, 4097]
    variables = [keras.Variable(ops.zeros((size,))) for size in sizes]
    step_fn = stepper(make(name, min_size=64), variables)
    for step in range(2):
        values = step_fn([1 + normal(n, seed=step) ** 2 for n in sizes])
    for value in values:
        # The largest entry of the first gradient moves down.
        assert value.min() < 0 and np.isfinite(value).all()
