import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.ops import sink_gd_step
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import SinkGD
from keras_efficient.utils import optimizer_state_bytes
from tests.compilers import compiled
from tests.optimizers.table import check_close
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import normal
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy


def bytes_of(shape, name="kernel", **options):
    """Bytes of state of one tensor."""
    optimizer = SinkGD(**options)
    optimizer.build([keras.Variable(ops.zeros(shape), name=name)])
    none = SinkGD()
    none.build([])
    return optimizer_state_bytes(optimizer) - optimizer_state_bytes(none)


@pytest.mark.parametrize(
    "shape", [(64, 64), (65, 129), (1000, 300), (3, 3, 64, 64)], ids=str
)
def test_matrices_have_no_state(shape):
    assert bytes_of(shape) == 0


def test_bytes_of_the_rest():
    embedding = {"shape": (64, 128), "name": "embeddings"}
    assert bytes_of(**embedding) == 64 * 128 * (2 + 2 * 2 / 32)
    assert bytes_of(**embedding, rest="adam") == 64 * 128 * 8
    assert bytes_of(**embedding, exclude_embeddings=False) == 0
    assert bytes_of((8192,)) == 8192 * (2 + 2 * 2 / 32)
    assert bytes_of((8192, 1)) > 0
    assert bytes_of((1, 8192)) > 0
    assert bytes_of((64,)) == 64 * 8
    assert bytes_of((64, 63)) == 64 * 63 * 8
    assert bytes_of((64, 63), min_size=0) == 0
    assert bytes_of((64, 64), min_size=4097) == 4096 * (2 + 2 * 2 / 32)
    assert bytes_of((64, 64), min_size=4097, rest="adam") == 4096 * 8
    assert bytes_of((64, 64), name="output", exclude_layers=["input"]) == 0
    assert bytes_of((64, 64), name="output", exclude_layers=["output"]) > 0


def test_matrices_are_normalized():
    variables, expected = make_variables(), to_numpy(make_variables())
    optimizer = SinkGD(0.1, alpha=0.2, sinkhorn_iterations=1)
    step_fn = stepper(optimizer, variables)
    expected_fn = compiled(functools.partial(sink_gd_step, iterations=1))
    for step in range(3):
        gradients = make_gradients(step)
        actual = step_fn(gradients)
        for i in range(2):
            gradient = ops.convert_to_tensor(gradients[i])
            update = expected_fn(gradient)
            expected[i] = expected[i] - 0.1 * 0.2 * to_numpy([update])[0]
            np.testing.assert_allclose(actual[i], expected[i], 1e-5, 1e-5)


@pytest.mark.parametrize("rest", ["adam", "adam8bit"])
def test_the_rest_has_adam(rest):
    shapes = {"bias": (64,), "embeddings": (64, 65)}
    sets = [
        [keras.Variable(ops.zeros(s), name=n) for n, s in shapes.items()]
        for _ in range(2)
    ]
    options = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}
    twin = Adam8bit
    if rest == "adam":
        # Keras has epsilon in another place.
        options["epsilon"], twin = 1e-12, keras.optimizers.Adam
    sink_step = stepper(SinkGD(0.1, rest=rest, **options), sets[0])
    twin_step = stepper(twin(0.1, **options), sets[1])
    for step in range(5):
        gradients = [normal(*s, seed=step) for s in shapes.values()]
        actual, expected = sink_step(gradients), twin_step(gradients)
        np.testing.assert_allclose(actual[0], expected[0], 1e-4, 1e-4)
        np.testing.assert_allclose(actual[1], expected[1], 1e-4, 1e-4)


def test_small_matrices_have_adam_at_the_rate_of_matrices():
    sets = [[keras.Variable(ops.zeros((20, 30)))] for _ in range(2)]
    sink_step = stepper(SinkGD(0.1, 0.2, epsilon=1e-12), sets[0])
    adam_step = stepper(keras.optimizers.Adam(0.02, epsilon=1e-12), sets[1])
    for step in range(5):
        gradients = [normal(20, 30, seed=step)]
        check_close(sink_step(gradients), adam_step(gradients), 1e-5)


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        SinkGD(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x = x / 16
    model.fit(x[:1300], y[:1300], epochs=5, verbose=0)
    assert model.evaluate(x[1300:], y[1300:], verbose=0)[1] > 0.85


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 0.0}, "`alpha` must be positive.*alpha=0.0"),
        ({"sinkhorn_iterations": 0}, "at least 1.*sinkhorn_iterations=0"),
        ({"rest": "sgd"}, "`rest` must be one of.*rest=sgd"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SinkGD(**options)
