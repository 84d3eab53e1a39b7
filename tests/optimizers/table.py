"""The optimizers under test, one row each, and what their tests share."""

import contextlib
import functools
from collections import namedtuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import optimizers

BACKEND = keras.config.backend()
# What state may be made of: all backends hold and save these.
ITEMSIZE = {
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16"), 2),
    **dict.fromkeys(("int8", "uint8"), 1),
}
SHAPES = {"kernel": (48, 96), "filters": (3, 3, 16, 40), "bias": (64,)}

Row = namedtuple(
    "Row",
    (
        "cls",
        "rate",  # with which it trains networks
        "slots",  # of state for "kernel"
        "bytes",  # at most, of state a parameter of 1000 x 300
        "exact",  # whether a last digit of the gradient stays a last digit
    ),
)
# A new optimizer is one row.
TABLE = {
    row.cls.__name__: row
    for row in (
        Row(optimizers.MicroAdam, 5e-3, 7, 0.95, False),
        Row(optimizers.Adam8bit, 5e-3, 4, 2.15, False),
        Row(optimizers.AdamW8bit, 5e-3, 4, 2.15, False),
        Row(optimizers.Lion8bit, 1e-3, 2, 1.075, False),
        Row(optimizers.SGD8bit, 5e-2, 2, 1.075, False),
        Row(optimizers.LDAdam, 5e-3, 6, 1.06, False),
        Row(optimizers.SinkGD, 5e-2, 0, 0.0, True),
        Row(optimizers.SelectedAdam, 5e-3, 3, 9.02, True),
        Row(optimizers.Muon8bit, 5e-3, 2, 1.075, False),
    )
}
each_optimizer = pytest.mark.parametrize("name", TABLE)
# AdamW8bit is Adam8bit with another default, which `make` takes away.
ALGORITHMS = [name for name in TABLE if name != "AdamW8bit"]
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def third(number):
    """All algorithms on PyTorch, which compiles nothing; elsewhere a third.

    Which one differs by number, from 0 to 2, and by backend.
    """
    if BACKEND == "torch":
        return ALGORITHMS
    return ALGORITHMS[(number + (BACKEND == "jax")) % 3 :: 3]


def third_of_algorithms(number):
    return pytest.mark.parametrize("name", third(number))


def each_with_a_third(argument, values):
    """Each value with all algorithms on PyTorch, elsewhere with a third."""
    pairs = [(x, name) for i, x in enumerate(values) for name in third(i)]
    return pytest.mark.parametrize((argument, "name"), pairs, ids=_id)


def _id(value):
    return getattr(value, "__name__", None)


def make(name, learning_rate=0.1, **options):
    """Return the optimizer; without weight decay, which two have by default,
    and for all weights, not a tenth of them."""
    if name in ("AdamW8bit", "Muon8bit"):
        options = {"weight_decay": 0.0, **options}
    if name == "Muon8bit":
        options = {"adam_weight_decay": options["weight_decay"], **options}
    if name == "SelectedAdam":
        options = {"density": 1.0, **options}
    return TABLE[name].cls(learning_rate, **options)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def placed(shape, path, seed, dtype="float32"):
    """Return a variable of random numbers that has a path."""
    *folders, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(keras.name_scope(folder))
        return keras.Variable(normal(*shape, seed=seed), dtype, name=name)


def make_variables(dtype="float32"):
    """Return a matrix, a kernel of a convolution and a vector."""
    return [
        keras.Variable(normal(*shape, seed=i), dtype=dtype, name=name)
        for i, (name, shape) in enumerate(SHAPES.items())
    ]


def make_gradients(step, scale=1.0):
    return [
        scale * normal(*shape, seed=[3, step, i])
        for i, shape in enumerate(SHAPES.values())
    ]


def to_numpy(tensors):
    return [
        np.asarray(ops.convert_to_numpy(x)).astype("float64") for x in tensors
    ]


def stepper(optimizer, variables):
    """Return a function from gradients to the new values, as in training.

    It is compiled on JAX, a graph on TensorFlow.
    """
    optimizer.build(variables)
    apply = _compiled_apply(optimizer, variables)

    def run(gradients):
        apply(
            [
                g if g is None else ops.convert_to_tensor(g, v.dtype)
                for g, v in zip(gradients, variables, strict=True)
            ]
        )
        return to_numpy(variables)

    return run


@functools.cache
def _plain(name):
    variables, optimizer = make_variables(), make(name)
    run = stepper(optimizer, variables)
    start = [ops.copy(v) for v in (*variables, *optimizer.variables)]
    return run, variables, optimizer, start


def plain_stepper(name):
    """Return what `stepper` does for the optimizer without options, and its
    variables, at their start; it is compiled once for all tests."""
    run, variables, optimizer, start = _plain(name)
    everything = [*variables, *optimizer.variables]
    for variable, value in zip(everything, start, strict=True):
        variable.assign(value)
    return run, variables


def plain_optimizer(name):
    """Return the optimizer of `plain_stepper`."""
    return _plain(name)[2]


def _compiled_apply(optimizer, variables):
    def apply(gradients):
        optimizer.apply(gradients, variables)

    if BACKEND == "torch":
        return apply
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(apply, autograph=False)
    import jax

    step_fn = jax.jit(optimizer.stateless_apply)

    def apply_stateless(gradients):
        values, state = step_fn(
            [v.value for v in optimizer.variables],
            gradients,
            [v.value for v in variables],
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*values, *state], strict=True
        ):
            variable.assign(value)

    return apply_stateless


def state_of(optimizer):
    """Return the variables of the optimizer less iterations, learning rate."""
    known = {id(optimizer._iterations), id(optimizer._learning_rate)}
    return [v for v in optimizer.variables if id(v) not in known]


def layout_of(optimizer):
    return [(tuple(v.shape), v.dtype) for v in state_of(optimizer)]


def check_equal(actual, expected):
    for a, b in zip(to_numpy(actual), to_numpy(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def check_close(actual, expected, tolerance=1e-5, outliers=0.0):
    """Compare; `outliers` is the part of the entries that may differ.

    A gradient that differs by one rounding may move one code.
    """
    for a, b in zip(to_numpy(actual), to_numpy(expected), strict=True):
        if not outliers:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert np.mean(np.abs(a - b) > tolerance * (1 + np.abs(b))) <= outliers
