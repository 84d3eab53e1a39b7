"""A backward pass that does not come back to its inputs is seen."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.autodiff import reconstruction_check
from keras_efficient.autodiff.reconstruction_check import ReconstructionCheck
from keras_efficient.kernels.ffi import xla_report
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleColumn
from keras_efficient.layers import ReversibleSequence
from tests.gradients import ENDS
from tests.gradients import MODES
from tests.gradients import gradient_step
from tests.gradients import to_numpy
from tests.twins import batch

BACKEND = keras.config.backend()
MESSAGE = "'narrow' did not come back to its inputs"


def step_of(momentum=1e-3, mode=MODES[0], **arguments):
    """A step of a run whose errors grow by 1 / momentum a block."""
    inputs = keras.Input((8,))
    blocks = [
        MomentumCoupling(layers.Dense(4, "tanh"), momentum) for _ in range(4)
    ]
    run = ReversibleSequence(blocks, name="narrow", **arguments)
    model = keras.Model(inputs, layers.Dense(3)(run(inputs)))
    step = gradient_step(model, mode)
    return lambda x=batch(16, 8): step([x])


@pytest.fixture
def warned():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        yield lambda: [str(w.message) for w in found if MESSAGE in str(w)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scan", [False, True][: 1 + (BACKEND == "jax")])
def test_a_step_that_fails_warns_once(mode, scan, warned):
    step = step_of(mode=mode, scan=scan)
    for _ in range(3):
        _, _, d_params = step()
        assert len(warned()) == 1
    assert all(np.isfinite(d).all() for d in d_params)


@pytest.mark.parametrize("mode", ENDS)
def test_a_good_step_says_nothing(mode, warned):
    step = step_of(0.9, mode, check="error")
    _, _, d_params = step()
    assert all(np.isfinite(d).all() for d in d_params)
    # What is not a number going in is not one coming back.
    step(np.full((16, 8), np.nan, "float32"))
    assert not warned()


@pytest.mark.parametrize("mode", ENDS)
def test_an_error_instead(mode, warned):
    step = step_of(mode=mode, check="error")
    if mode == "eager":
        with pytest.raises(FloatingPointError, match=MESSAGE):
            step()
        return
    _, _, d_params = step()
    assert len(warned()) == 1
    inside = d_params[:8]
    assert all(np.isnan(d).all() for d in inside)


def test_nothing_is_checked_if_so_told(warned):
    step_of(check=None)()
    assert not warned()


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles nothing.")
def test_where_no_handler_can_be_called(monkeypatch, warned):
    monkeypatch.setattr(xla_report, "can_report", lambda tensor: False)
    _, _, d_params = step_of(mode=MODES[-1], check="error")()
    assert all(np.isnan(d).all() for d in d_params[:8])
    if BACKEND == "jax":
        import jax

        jax.effects_barrier()
        assert len(warned()) == 1


@pytest.mark.skipif(BACKEND != "jax", reason="Of JAX.")
def test_jax_without_jit_and_in_vmap(warned):
    import jax

    blocks = [MomentumCoupling(layers.Dense(4), 1e-3) for _ in range(4)]
    run = ReversibleSequence(blocks, name="narrow", check="error")
    x = batch(2, 3, 8)
    run(x[0])

    def gradients(x):
        def total(kernel, x):
            with keras.StatelessScope([(blocks[0].f.kernel, kernel)]):
                return ops.sum(run(x))

        return jax.grad(total)(blocks[0].f.kernel.value, x)

    with pytest.raises(FloatingPointError, match=MESSAGE):
        gradients(x[0])
    assert np.isnan(to_numpy([jax.vmap(gradients)(x)])).all()
    assert len(warned()) == 1
    for block in blocks:
        block.momentum.assign(0.9)
    assert np.isfinite(to_numpy([jax.vmap(gradients)(x)])).all()
    assert len(warned()) == 1


def test_streams_that_are_dropped_on_the_way_back_count(warned):
    columns = [
        ReversibleColumn([Level(), Level()], i == 0, scale=1e-3, epsilon=1e-4)
        for i in range(5)
    ]
    inputs = keras.Input((4,))
    outputs = ReversibleSequence(columns, name="narrow")([inputs])
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    gradient_step(model)([batch(16, 4)])
    assert len(warned()) == 1


class Level(layers.Layer):
    def build(self, shapes):
        self.dense = layers.Dense(4, "tanh")
        self.dense.build(shapes[0])

    def call(self, inputs):
        return self.dense(sum(inputs))


def test_a_coupling_alone_is_checked_too(warned):
    class Wrong(AdditiveCoupling):
        def pull_back(self, outputs, cotangents, vjp):
            (x1, x2), d = super().pull_back(outputs, cotangents, vjp)
            return (x1 + 0.1, x2), d

    inputs = keras.Input((8,))
    outputs = Wrong(layers.Dense(4), name="narrow")(inputs)
    gradient_step(keras.Model(inputs, outputs))([batch(16, 8)])
    assert len(warned()) == 1


def failed(*pairs):
    check = ReconstructionCheck("narrow", "warn")
    before, after = zip(*pairs)
    return bool(check.failed(check.keep(before), after))


def test_what_counts_as_a_failure():
    x, zero = batch(64, 50, 32), np.zeros((64, 50, 32), "float32")
    off = x.copy()
    off[17] += 0.5  # one example
    channel = x.copy()
    channel[..., 5] += 0.5
    assert failed((x, off)) and failed((x, channel)) and failed((x, 1.05 * x))
    assert failed((x, np.where(x > 2, np.nan, x)))
    assert not failed((x, x)) and not failed((x, 1.01 * x))
    # Of a stream of zeros, as a velocity, measured by the other.
    assert not failed((x, x), (zero, zero + 1e-3))
    assert failed((x, x), (zero, zero + 0.1)) and not failed((zero, 1e-7 * x))
    huge = 1e30 * x
    assert failed((huge, 1.1 * huge)) and not failed((huge, huge))
    assert not failed((x[:0], x[:0]))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Of TensorFlow.")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_unknown_sizes_in_a_graph(jit_compile):
    import tensorflow as tf

    check = ReconstructionCheck("narrow", "warn")
    shape = tf.TensorSpec((None, None, 3))
    function = tf.function(
        lambda x, y: check.failed(check.keep([x]), [y]),
        input_signature=[shape, shape],
        jit_compile=jit_compile,
    )
    for n in (1, 50):
        x = batch(n, 40, 3)
        assert not function(x, x) and function(x, x + 1)


def test_samples_are_few_and_of_all_channels():
    for shape in ((7,), (3000, 2), (33, 128, 768), (4, 1025)):
        x = np.broadcast_to(np.arange(shape[-1], dtype="float32"), shape)
        (sample,) = to_numpy([reconstruction_check.sample(x)])
        assert len(sample) < 2100
        assert len(set(sample)) > min(shape[-1], 1024) / 8


def test_configs_round_trip():
    block = AdditiveCoupling(layers.Dense(4))
    run = ReversibleSequence([block], check="error")
    assert ReversibleSequence.from_config(run.get_config()).check == "error"
    with pytest.raises(ValueError, match="`check` must be 'warn'"):
        ReversibleSequence([block], check="print")
