import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.plain_run import plain_run
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import InvertibleDense
from keras_efficient.layers import InvertibleDownsampling1D
from keras_efficient.layers import InvertibleLeakyReLU
from keras_efficient.layers import InvertibleSequential
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import check_reversibility
from tests.gradients import to_numpy
from tests.marks import first
from tests.twins import Rotation
from tests.twins import batch
from tests.twins import function


def built(*blocks, **arguments):
    run = ReversibleSequence(blocks, **arguments)
    run(batch(16, 8))
    return run


def test_reports_small_errors_and_changes_nothing(capsys):
    run = built(
        AdditiveCoupling(function(3), function(None)),
        Rotation(layers.Dense(4, "tanh")),
        AdditiveCoupling(layers.Activation("tanh")),
    )
    before = to_numpy(run.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = check_reversibility(run, batch(64, 8))
    assert len(found.reconstruction) == len(found.gradient) == 3
    assert 0 < max(found.reconstruction) < 1e-5
    assert 0 < max(found.gradient) < 1e-3 and found.gradient[2] == 0
    assert found.inputs < 1e-4 and found.discrete == []
    assert run.reversible
    for a, b in zip(before, to_numpy(run.weights)):
        np.testing.assert_array_equal(a, b)
    printed = capsys.readouterr().out
    for block in run.blocks:
        assert block.name in printed


def test_finds_the_block_whose_inverse_is_wrong():
    class Wrong(Rotation):
        def uncouple(self, streams, evaluate):
            x1, x2 = super().uncouple(streams, evaluate)
            return 1.01 * x1, x2

    def dense():
        return layers.Dense(4, "tanh")

    run = built(AdditiveCoupling(dense()), Wrong(dense()), Rotation(dense()))
    found = check_reversibility(run, batch(16, 8))
    assert found.reconstruction[2] < 1e-5 < 1e-3 < found.reconstruction[1]
    assert found.gradient[2] < 1e-4 < 1e-3 < found.gradient[0]


class Round(layers.Layer):
    def call(self, x):
        return ops.round(x)


class TopOne(layers.Layer):
    def call(self, x):
        return x * ops.one_hot(ops.argmax(x, -1), 4)


class Bucket(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(8, 4))

    def call(self, x):
        index = ops.cast(ops.sum(x > 0, -1), "int32")
        return ops.take(self.table, index, axis=0)


@pytest.mark.parametrize("exact", [True, False])
def test_pitfall_13_warns_of_sub_layers_that_make_discrete_choices(exact):
    blocks = [
        AdditiveCoupling(layers.Dense(4, "tanh"), layer(name=layer.__name__))
        for layer in (Round, TopOne, Bucket)
    ]
    run = built(*blocks, exact=exact)
    with pytest.warns(UserWarning, match=r"'TopOne'\] jump where"):
        found = check_reversibility(run, batch(256, 8))
    assert found.discrete == ["Bucket", "Round", "TopOne"]


@pytest.mark.parametrize(
    "policy", first("mixed_bfloat16", "mixed_float16", "float32")
)
def test_pitfall_13_continuous_sub_layers_are_not_suspected(policy):
    def function(activation):
        return keras.Sequential(
            [
                layers.LayerNormalization(dtype=policy),
                layers.Dense(32, activation, dtype=policy),
                layers.Dense(4, activation, dtype=policy),
            ]
        )

    activations = "relu", "tanh", "gelu", "hard_sigmoid"
    run = built(*[AdditiveCoupling(function(x)) for x in activations])
    assert check_reversibility(run, batch(64, 8)).discrete == []


def test_context_is_handed_on():
    class Add(layers.Layer):
        def call(self, x, context):
            return ops.tanh(x + context)

    run = ReversibleSequence([AdditiveCoupling(Add())])
    run(batch(4, 8), context=batch(4, 4))
    found = check_reversibility(run, batch(4, 8), context=batch(4, 4))
    assert found.inputs < 1e-5


def test_other_layers_are_refused():
    with pytest.raises(TypeError, match="Pass the layer, not the model"):
        check_reversibility(layers.Dense(3), batch(2, 8))
    with pytest.raises(ValueError, match="has to be built"):
        check_reversibility(AdditiveCoupling(layers.Dense(4)), batch(2, 8))


def test_verdicts(capsys):
    def verdict(layer, x):
        layer(x)
        found = check_reversibility(layer, x)
        printed = " ".join(capsys.readouterr().out.split())
        assert found.passed == (not found.reason)
        expected = "Passed." if found.passed else f"Failed: {found.reason}"
        assert printed.endswith(" ".join(expected.split()))
        return found

    def momentum(m, depth, policy=None):
        blocks = [
            MomentumCoupling(layers.Dense(4, "tanh", dtype=policy), m)
            for _ in range(depth)
        ]
        return ReversibleSequence(blocks)

    x = batch(16, 8)
    assert verdict(momentum(0.9, 2), x).passed
    assert verdict(momentum(0.9, 2, "mixed_bfloat16"), x).passed
    found = verdict(momentum(0.01, 3), x)
    assert "a momentum closer to 1" in found.reason
    silent = AdditiveCoupling(layers.Dense(4, kernel_initializer="zeros"))
    silent.f.activation = keras.activations.relu
    found = verdict(ReversibleSequence([silent]), np.zeros_like(x))
    assert np.isnan(found.gradient[0]) and "nothing to compare" in found.reason

    # Other layers with an inverse.
    for layer in (
        InvertibleDense(8),
        InvertibleSequential([InvertibleDense(8), InvertibleLeakyReLU()]),
        InvertibleDense(8, dtype="mixed_bfloat16"),
    ):
        found = verdict(layer, x)
        assert found.passed and found.gradient == [] and found.inputs is None
        assert len(found.reconstruction) == 1 and found.reconstruction[0] < 0.02
    found = verdict(InvertibleDense(8, kernel_initializer="ones"), x)
    assert "orthonormal" in found.reason
    padded = InvertibleDownsampling1D(padding="same")
    assert verdict(padded, batch(2, 5, 3)).passed


def test_lora_in_a_frozen_parent_is_measured():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.q = layers.Dense(4)

        def build(self, shape):
            self.q.build(shape)

        def call(self, x):
            return self.q(x)

    f = Block()
    run = built(AdditiveCoupling(f))
    f.trainable = False
    f.q.trainable = True
    f.q.enable_lora(2)
    f.q.lora_kernel_b.assign(np.ones((2, 4), "float32"))
    assert len(backend.leaves(f)) == 3 - (not f.q.bias.trainable)
    with lost_gradients(run, f.q.lora_kernel_b):
        found = check_reversibility(run, batch(16, 8))
    assert found.gradient[0] > 0.1 and not found.passed
    assert "gradient of block" in found.reason


@contextlib.contextmanager
def lost_gradients(run, variable):
    """Let the reversible run not see a variable as trainable."""
    call = type(run).call

    def blind(self, *args, **kwargs):
        if not self.reversible:
            return call(self, *args, **kwargs)
        constant = ops.stop_gradient(ops.convert_to_tensor(variable))
        with keras.StatelessScope([(variable, constant)]):
            return call(self, *args, **kwargs)

    type(run).call = blind
    try:
        yield
    finally:
        type(run).call = call


@pytest.mark.skipif(keras.config.backend() != "torch", reason="Of PyTorch.")
def test_parameters_of_modules_are_measured():
    import torch

    class Raw(layers.Layer):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4))

        def call(self, x):
            return torch.tanh(x * self.scale)

    captured = torch.nn.Parameter(torch.ones(4))
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    for f, number in (
        (layers.TorchModuleWrapper(module, output_shape=(16, 4)), 4),
        (Raw(), 1),
        (layers.Lambda(lambda x: torch.tanh(x * captured)), 1),
    ):
        run = built(AdditiveCoupling(f))
        before = {k: v.clone() for k, v in run.state_dict().items()}
        plain, _ = backend.leaf_gradients(
            run,
            lambda x: plain_run([*run.blocks], x, {}, training=True, axis=-1),
            ops.convert_to_tensor(batch(16, 8)),
        )
        assert len(plain) == number
        found = check_reversibility(run, batch(16, 8))
        # Whether a run finds them is another question; the check tells.
        ours, _ = backend.leaf_gradients(
            run,
            lambda x: run(x, training=True),
            ops.convert_to_tensor(batch(16, 8)),
        )
        arrive = all(
            key in ours and torch.allclose(ours[key], d, rtol=1e-3, atol=1e-3)
            for key, d in plain.items()
        )
        assert found.passed == arrive
        for key, value in run.state_dict().items():
            torch.testing.assert_close(value, before[key])
