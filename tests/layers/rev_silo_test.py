import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.layers import MBConv
from keras_efficient.layers import ReversibleMBConv
from keras_efficient.layers import ReversibleParallel
from keras_efficient.layers import ReversibleSequence
from keras_efficient.layers import RevSilo
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import GRAPH
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import ExactDense
from tests.twins import Rotation
from tests.twins import batch
from tests.twins import relative_errors

WIDTHS = (3, 4, 3, 4, 3, 4)


def silo(n, new_scale, function=ExactDense):
    return RevSilo(
        [[function(WIDTHS[j]) for j in range(i + 1, n)] for i in range(n - 1)],
        [[function(WIDTHS[j]) for j in range(i)] for i in range(1, n)],
        new_scale,
    )


def streams(n, dtype="float64"):
    return [i + batch(4, WIDTHS[i], dtype=dtype) for i in range(n)]


def dropped(width):
    return keras.Sequential([layers.Dropout(0.3, seed=1), ExactDense(width)])


def check_gradients(blocks, inputs, mode, bound=1e-11):
    found = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        x = [keras.Input(x.shape[1:]) for x in inputs]
        model = keras.Model(x, ReversibleSequence(blocks(), reversible)(x))
        found.append(gradients(model, inputs, mode))
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs)) < bound
        assert all(np.any(b != 0) for b in theirs)


@pytest.mark.parametrize("new_scale", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_silo_computes_its_equations_and_has_an_inverse(n, new_scale, float64):
    block = silo(n, new_scale)
    x = streams(n - new_scale)
    y = block(x)
    assert block.compute_output_shape([v.shape for v in x]) == [
        (4, width) for width in WIDTHS[:n]
    ]
    down, up = iter(block.down), iter(block.up)
    u = x + [0] * new_scale
    for i in range(n - 1):
        for j in range(i + 1, n):
            u[j] = u[j] + to_numpy([next(down)(x[i])])[0]
    expected = list(u)
    for i in range(1, n):
        for j in range(i):
            expected[j] = expected[j] + to_numpy([next(up)(u[i])])[0]
    for a, b in zip(to_numpy(y), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    for a, b in zip(to_numpy(block.inverse(y)), x, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    if not new_scale:
        for a, b in zip(to_numpy(block(block.inverse(x))), x, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


def test_pitfall_14_gradients_of_silos_that_add_a_scale(float64):
    def blocks():
        return [silo(2, True, dropped), silo(3, True), silo(3, False, dropped)]

    check_gradients(blocks, streams(1), GRAPH)


@pytest.mark.parametrize("new_scale", [False, True])
def test_gradients_of_many_scales(new_scale, float64):
    n = 4 if keras.config.backend() == "jax" else 6  # which compiles for long
    inputs = streams(n - new_scale)
    check_gradients(lambda: [silo(n, new_scale)], inputs, MODES[0], 1e-10)


def test_one_layer_between_several_scales(float64):
    """Its calls are repeated with the random numbers that each one drew."""

    def blocks():
        shared = dropped(4)
        return [RevSilo([[shared] * 2, [shared]], [[shared], [shared] * 2])]

    inputs = [i + batch(4, 4, dtype="float64") for i in range(3)]
    check_gradients(blocks, inputs, MODES[0])


def test_parallel_blocks_of_any_kind(float64):
    def blocks():
        nested = ReversibleSequence([Rotation(ExactDense(2))] * 2)
        rotation = Rotation(ExactDense(3))
        return [ReversibleParallel([nested, rotation]) for _ in range(2)]

    inputs = [batch(4, 4, dtype="float64"), batch(4, 6, dtype="float64")]
    check_gradients(blocks, inputs, MODES[0])
    layer = blocks()[0]
    again = layer.inverse(layer(inputs))
    for a, b in zip(to_numpy(again), inputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_silos_are_exact_on_integers():
    run = ReversibleSequence(
        [silo(2, True, layers.Dense), silo(3, True, layers.Dense)], exact=True
    )
    x = [np.round(batch(4, 3) * 2**16) / 2**16]
    np.testing.assert_array_equal(to_numpy(run.inverse(run(x)))[0], x[0])


@once  # on each backend the tests of columns and runs ask
def test_bytes_kept_do_not_grow_with_silos():
    def kept(count, reversible):
        def dense():
            return layers.Dense(64, "tanh")

        blocks = [RevSilo([[dense()]], [[dense()]]) for _ in range(count)]
        blocks = [RevSilo([[dense()]], [[dense()]], True), *blocks]
        inputs = keras.Input((64,))
        run = ReversibleSequence(blocks, reversible)
        model = keras.Model(inputs, run([inputs]))
        return saved_activation_bytes(model, batch(4096, 64))

    growth = kept(8, True) - kept(2, True)
    plain_growth = kept(8, False) - kept(2, False)
    assert plain_growth > 6 * 2 * 4096 * 64 * 4
    assert growth < 0.02 * plain_growth


def test_configs_round_trip():
    for layer in (
        silo(3, True, layers.Dense),
        ReversibleParallel([ReversibleMBConv(6, se_ratio=0.5)]),
        ReversibleMBConv(7, 5, 3, 0.5, 0.1, "instance", "relu", 3),
        MBConv(4, 5, 2, 3, 0.5, 0.1, "instance", "relu", 3),
    ):
        config = layer.get_config()
        again = type(layer).from_config(config)
        assert again.get_config() == config == layer.get_config()


def test_bad_arguments_are_refused():
    dense = layers.Dense(4)
    with pytest.raises(ValueError, match=r"lists of \[1\] and of \[2\]"):
        RevSilo([[dense]], [[dense, dense]])
    with pytest.raises(TypeError, match="`up` must be a `keras.layers.Layer`"):
        RevSilo([[dense]], [["relu"]])
    with pytest.raises(ValueError, match="takes a list of 2 feature maps"):
        silo(2, False)(streams(1))
    with pytest.raises(ValueError, match="from scale 0 to scale 1"):
        RevSilo([[layers.Dense(3)]], [[dense]])([batch(2, 4), batch(2, 4)])
    with pytest.raises(TypeError, match="`blocks` must be reversible layers"):
        ReversibleParallel([dense])
    with pytest.raises(ValueError, match="with the same `axis`"):
        ReversibleParallel([])
    with pytest.raises(ValueError, match="takes a list of 1 streams"):
        ReversibleParallel([ReversibleMBConv(4)])([batch(2, 4)] * 2)
    with pytest.raises(ValueError, match="`filters` must be at least 2"):
        ReversibleMBConv(1)
