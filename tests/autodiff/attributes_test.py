import gc
import weakref

import keras
import numpy as np
import pytest

from keras_efficient.layers import Recompute
from keras_efficient.layers import Tiled
from tests.gradients import gradient_step
from tests.layers.awkward_layers import LeavesATensor

X = np.ones((2, 4), "float32")


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="It repeats no Python."
)
def test_a_repeated_call_leaves_what_was_left_and_holds_no_earlier_step():
    layer = LeavesATensor()
    seen = []

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.recomputed = Recompute(layer)

        def call(self, x):
            y = self.recomputed(x)
            seen.append(weakref.ref(layer.left))
            self.add_loss(keras.ops.sum(layer.left))
            return y

    model = Model()
    model(X)
    step = gradient_step(model)
    for _ in range(3):
        step([X])
        assert seen[-1]() is layer.left
    gc.collect()
    assert [reference() is None for reference in seen] == [True] * 3 + [False]


def test_tiles_leave_nothing():
    with pytest.raises(ValueError, match="attribute, `left`"):
        Tiled(LeavesATensor(), tiles=2)(np.ones((2, 4, 4), "float32"))
