"""`exact=True` where its range ends: what leaves it is NaN from then on."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleLayer
from keras_efficient.layers import ReversibleParallel
from keras_efficient.layers import ReversibleSequence
from tests.gradients import MODES
from tests.gradients import gradient_step
from tests.gradients import to_numpy

NAN, INF = float("nan"), float("inf")
TOP = 32768 - 2.0**-9  # the last float32 of the range
IN_RANGE = [[1, 2], [20000, -20000], [-15000, -9000], [TOP, -TOP], [0, -3]]
BEYOND = (
    *([20000, 20000], [-20000, -20000], [30000, -3e9], [40000, -20000]),
    *([NAN, 1], [1, INF], [-INF, 1], [-32768, 0], [0, 32768], [TOP, 1]),
)
X = np.array([*IN_RANGE, *BEYOND], "float32")


class Own(ReversibleLayer):
    """A user's coupling: y = (-x2, x1 + f(x2) - g(x2))."""

    additive = True

    def __init__(self, f, g):
        super().__init__()
        self.f = f
        self.g = g

    def couple(self, streams, evaluate):
        x1, x2 = streams
        return -x2, x1 + evaluate(self.f, x2) - evaluate(self.g, x2)

    def uncouple(self, streams, evaluate):
        y1, y2 = streams
        x2 = -y1
        return y2 + evaluate(self.g, x2) - evaluate(self.f, x2), x2


def additive():
    return AdditiveCoupling(layers.Rescaling(1.0), layers.Rescaling(-1.0))


RUNS = {
    "additive": lambda: [additive()],
    "own": lambda: [Own(layers.Rescaling(1.0), layers.Rescaling(0.0))],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blocks", RUNS.values(), ids=RUNS)
def test_a_sum_that_leaves_the_range_is_nan(blocks, mode):
    found = []
    for reversible in (True, False):
        inputs = keras.Input((2,))
        run = ReversibleSequence(blocks(), reversible, exact=True)
        model = keras.Model(inputs, run(inputs))
        (y,), (d_x,), _ = gradient_step(model, mode)([X])
        (again,) = to_numpy([run.inverse(y)])
        found.append((y, d_x, again))
    for ours, plain in zip(*found):
        np.testing.assert_array_equal(ours, plain)
        assert np.isfinite(ours[: len(IN_RANGE)]).all()
        assert np.isnan(ours[len(IN_RANGE) :]).any(axis=-1).all()
    np.testing.assert_array_equal(again[: len(IN_RANGE)], IN_RANGE)


@pytest.mark.parametrize("scan", [False, True])
def test_it_stays_nan(scan):
    class Add(layers.Layer):
        def call(self, x):
            return 0 * x + 20000.0

    for reversible in (True, False):
        blocks = [AdditiveCoupling(Add(), Add()) for _ in range(3)]
        run = ReversibleSequence(blocks, reversible, exact=True, scan=scan)
        y = run(np.zeros((1, 2), "float32"))
        assert np.isnan(to_numpy([y, run.inverse(y)])).all()
        first = blocks[0](np.zeros((1, 2), "float32"))
        np.testing.assert_array_equal(to_numpy([first])[0], [[2e4, 2e4]])


def test_streams_of_a_parallel_block_leave_the_range_one_by_one():
    for reversible in (True, False):
        block = ReversibleParallel([additive(), additive()])
        run = ReversibleSequence([block], reversible, exact=True)
        y = run([X[:5], X[5:]])
        assert type(y) is list
        again = to_numpy(run.inverse(y))
        np.testing.assert_array_equal(again[0], IN_RANGE)
        for x in (to_numpy(y)[1], again[1]):
            assert np.isnan(x).any(axis=-1).all()


def test_other_operations_on_streams_are_refused():
    class Flip(Own):
        def couple(self, streams, evaluate):
            x1, x2 = streams
            return x2, x1 + evaluate(self.f, ops.flip(x2))

    class Scale(Own):
        def couple(self, streams, evaluate):
            x1, x2 = streams
            return x2, x1 + 2 * evaluate(self.f, x2)

    f = layers.Rescaling(1.0)
    for kind, message in ((Flip, "can be added, sub"), (Scale, "operand")):
        run = ReversibleSequence([kind(f, f)], exact=True)
        with pytest.raises(TypeError, match=message):
            run(X)
