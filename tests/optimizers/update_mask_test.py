"""What is trained now is decided inside the compiled step.

The rules, and where each is tested: (1) no flag of Python, no retrace: here
and in `lisa_test.py`; (2) gradients are masked before they are clipped, (3)
what is frozen does not decay, (4) nor move with momentum, (5) bias corrections
count a variable's own steps: the equations in `lisa_test.py`,
`unfreezing_test.py`, `selected_adam_test.py`; (6) state is as small as its
shapes: `test_state_is_that_of_the_slots`, `test_random_places_and_bytes`; (7)
weights are no part of the optimizer's state: here.
"""

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import optimizers
from keras_efficient import release_gradients
from keras_efficient.constraints import StaticSparsity
from tests.optimizers.table import BACKEND
from tests.optimizers.table import check_equal
from tests.optimizers.table import normal

NAMES = [f"block_{i}" for i in range(3)]
GROUPS = [["head"], *([name] for name in reversed(NAMES))]
MAKE = {
    "LISA": lambda: optimizers.LISA(
        0.01, blocks=NAMES, active_blocks=1, period=3
    ),
    "SelectedAdam": lambda: optimizers.SelectedAdam(
        0.01, density=0.25, min_size=16
    ),
    "Unfreezing": lambda: optimizers.Unfreezing(
        keras.optimizers.AdamW(0.01), GROUPS, interval=2
    ),
    "MaskedOptimizer": lambda: optimizers.MaskedOptimizer(
        optimizers.SinkGD(0.05, min_size=16)
    ),
    "AdaptiveBatch": lambda: optimizers.AdaptiveBatch(
        optimizers.Adam8bit(0.02, min_size=16), decay=0.0, max_micro_batches=3
    ),
}


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,))])
    for name in NAMES:
        model.add(
            layers.Dense(
                8,
                "tanh",
                dtype="mixed_float16",
                kernel_constraint=StaticSparsity(0.25),
                name=name,
            )
        )
    model.add(layers.Dense(1, name="head"))
    return model


@pytest.mark.parametrize("name", MAKE)
def test_mixed_precision_and_a_run_that_is_resumed(name, tmp_path, monkeypatch):
    """With a scale of the loss, in XLA; from a file, in the middle of it."""
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    options = {"jit_compile": True} if BACKEND == "tensorflow" else {}
    optimizer = MAKE[name]()
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256)
    model = network()
    model.compile(scaled, "mse", **options)
    x = normal(80, 8)
    y = np.tanh(x[:, :1])
    first = model.evaluate(x, y, verbose=0)
    for _ in range(5):
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert model.evaluate(x, y, verbose=0) < first
    weights = {id(v) for v in model.variables}
    assert not weights & {id(v) for v in optimizer.variables}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check_equal(loaded.optimizer.variables, model.optimizer.variables)
    for m in (model, loaded):
        m.compile(m.optimizer, "mse", **options)
        m.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    check_equal(loaded.get_weights(), model.get_weights())
    check_equal(loaded.optimizer.variables, model.optimizer.variables)


@pytest.mark.skipif(BACKEND != "torch", reason="gradients are hooked there")
@pytest.mark.parametrize("name", ["LISA", "Unfreezing", "AdaptiveBatch", None])
def test_gradients_cannot_be_released_one_by_one(name):
    """These step on all variables together."""
    make = MAKE.get(name, optimizers.AdaGradNorm)
    model = release_gradients(network())
    model.compile(make(), "mse")
    with pytest.raises(ValueError, match="the gradients of all variables"):
        model.train_on_batch(normal(4, 8), normal(4, 1))
