"""Each public object once: made, called, and made again from its settings.

A new public name is a new row. `python tools/test.py --quick` runs these rows.
"""

import functools
import inspect
import itertools
import tempfile

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Dense

from keras_efficient import callbacks
from keras_efficient import chunk_loss
from keras_efficient import config
from keras_efficient import constraints
from keras_efficient import initializers
from keras_efficient import kernels
from keras_efficient import layers
from keras_efficient import losses
from keras_efficient import metrics
from keras_efficient import micro_batches
from keras_efficient import models
from keras_efficient import ops as our_ops
from keras_efficient import optimizers
from keras_efficient import recompute
from keras_efficient import regularizers
from keras_efficient import release_gradients
from keras_efficient import save_in_16_bits
from keras_efficient import utils
from tests.gradients import to_numpy
from tests.package_test import public_names
from tests.twins import batch

pytestmark = pytest.mark.quick

ROWS = {}  # from names to what uses all of them


def row(*names):
    def enter(check):
        ROWS[names] = check
        return check

    return enter


def test_the_rows_are_the_public_names():
    assert sorted(itertools.chain(*ROWS)) == sorted(public_names())


def same_settings(thing):
    settings = thing.get_config()
    again = type(thing).from_config(settings)
    assert again.get_config() == settings


def all_finite(*tensors):
    for array in to_numpy(keras.tree.flatten(tensors)):
        assert np.isfinite(array.astype("float32")).all()


def every_weight_is_found(layer):
    """By its path, and by PyTorch as a parameter that trains."""
    paths = [variable.path for variable in layer.variables]
    assert len(set(paths)) == len(paths)
    if keras.config.backend() == "torch":
        parameters = [p for p in layer.parameters() if p.requires_grad]
        assert len(parameters) == len(layer.trainable_variables)


# Layers


def dense(units, activation="tanh"):
    return Dense(units, activation)


def check_layer(make, *shapes):
    layer, x = make(), [batch(2, *shape) for shape in shapes]
    y = layer(x if len(x) > 1 else x[0])
    all_finite(y)
    every_weight_is_found(layer)
    same_settings(layer)
    if hasattr(layer, "inverse"):
        again = to_numpy(keras.tree.flatten(layer.inverse(y)))
        for ours, theirs in zip(again, x, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def inverse_of_dense():
    inner = layers.InvertibleDense(4)
    inner.build((None, 4))
    return layers.Inverse(inner)


def column():
    return layers.ReversibleColumn([Joined(4), Joined(4)])


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Joined(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = Dense(units)

    def build(self, shapes):
        self.dense.build((None, sum(shape[-1] for shape in shapes)))

    def call(self, inputs):
        return self.dense(ops.concatenate(inputs, -1))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Swap(layers.ReversibleLayer):
    """A user's coupling."""

    def couple(self, streams, evaluate):
        return streams[::-1]

    def uncouple(self, streams, evaluate):
        return streams[::-1]


def run():
    couplings = [layers.AdditiveCoupling(dense(4)) for _ in range(2)]
    return layers.ReversibleSequence(couplings)


LAYERS = {
    "AdditiveCoupling": (lambda: layers.AdditiveCoupling(dense(4)), (8,)),
    "AffineCoupling": (
        lambda: layers.AffineCoupling(dense(8), dense(8)),
        (8,),
    ),
    "MomentumCoupling": (lambda: layers.MomentumCoupling(dense(4)), (8,)),
    "ReversibleLayer": (Swap, (8,)),
    "ReversibleSequence": (run, (8,)),
    "ReversibleParallel": (
        lambda: layers.ReversibleParallel([run(), run()]),
        *((8,), (8,)),
    ),
    "ReversibleColumn": (column, *((4,), (4,), (4,))),
    "RevSilo": (
        lambda: layers.RevSilo([[dense(4)]], [[dense(4)]]),
        *((4,), (4,)),
    ),
    "ReversibleMBConv": (lambda: layers.ReversibleMBConv(4), (6, 6, 4)),
    "ReversibleSplit": (lambda: layers.ReversibleSplit(3), *((8,), (4,))),
    "ReversibleConcatenate": (layers.ReversibleConcatenate, *((8,), (4,))),
    "ReversibleTransformerEncoder": (
        lambda: layers.ReversibleTransformerEncoder(12, 2),
        (5, 16),
    ),
    "ReversibleTransformerDecoder": (
        lambda: layers.ReversibleTransformerDecoder(12, 2, use_rope=True),
        (5, 16),
    ),
    "Recompute": (lambda: layers.Recompute([dense(8), dense(4)]), (8,)),
    "Tiled": (lambda: layers.Tiled(dense(8), tiles=2), (5, 8)),
    "SparseNM": (lambda: layers.SparseNM(dense(4)), (8,)),
    "WeightStandardization": (
        lambda: layers.WeightStandardization(dense(4)),
        (8,),
    ),
    "BatchChannelNormalization": (
        lambda: layers.BatchChannelNormalization(2),
        (4, 4, 8),
    ),
    "ConvBN": (
        lambda: layers.ConvBN(
            keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()
        ),
        (4, 4, 2),
    ),
    "Reparametrized": (
        lambda: layers.Reparametrized(dense(4), ops.tanh),
        (8,),
    ),
    "ConvNeXtBlock": (lambda: layers.ConvNeXtBlock(3), (6, 6, 4)),
    "DepthwiseConv3D": (lambda: layers.DepthwiseConv3D(3), (4, 4, 4, 2)),
    "MBConv": (lambda: layers.MBConv(4), (6, 6, 4)),
    "Inverse": (inverse_of_dense, (4,)),
    "InvertibleDense": (lambda: layers.InvertibleDense(4), (4,)),
    "InvertibleLeakyReLU": (
        lambda: layers.InvertibleLeakyReLU(learned=True),
        (4,),
    ),
    "OrthogonalMixing": (
        lambda: layers.OrthogonalMixing(kernel_initializer="uniform"),
        (4,),
    ),
    "InvertibleResidual": (
        lambda: layers.InvertibleResidual(
            layers.InvertibleDense(4, False, "zeros")
        ),
        (4,),
    ),
    "InvertibleSequential": (
        lambda: layers.InvertibleSequential([layers.InvertibleDense(4)]),
        (4,),
    ),
    # Normalization
    "EvoNorm": (lambda: layers.EvoNorm(groups=2), (5, 4)),
    "InstanceBatchNormalization": (
        layers.InstanceBatchNormalization,
        (5, 4),
    ),
    "AlphaBN": (layers.AlphaBN, (5, 4)),
    "UnMixTNS": (layers.UnMixTNS, (5, 4)),
    "PRepBN": (lambda: layers.PRepBN(10), (5, 4)),
    "SimplifiedLinearAttention": (
        lambda: layers.SimplifiedLinearAttention(2, (2, 3)),
        (6, 4),
    ),
    "Binarized": (lambda: layers.Binarized(dense(4)), (8,)),
    "ShannonDecay": (layers.ShannonDecay, (5, 4)),
    "FixedClassifier": (lambda: layers.FixedClassifier(3), (5, 4)),
    "ElasticDense": (lambda: layers.ElasticDense(3), (4,)),
    "ElasticConv2D": (lambda: layers.ElasticConv2D(3), (5, 5, 2)),
    "SelfTuningDense": (lambda: layers.SelfTuningDense(3), *((4,), (1,))),
    "SelfTuningDropout": (layers.SelfTuningDropout, (4,), (1,)),
    "GradientReversal": (lambda: layers.GradientReversal(0.5, 10), (8,)),
    # Adaptation
    "Hydra": (lambda: layers.Hydra(Dense(4), 2), (8,)),
    "EcoTTABlock": (
        lambda: layers.EcoTTABlock(keras.layers.Conv2D(4, 1)),
        (6, 6, 4),
    ),
    "HyperNetwork": (lambda: layers.HyperNetwork(dense(4)), (8,), (3,)),
    "KeyValueBottleneck": (
        lambda: layers.KeyValueBottleneck(2, 4, 3, 5),
        (8,),
    ),
    "Hopfield": (lambda: layers.Hopfield(2, 3), (5, 8)),
    "HopfieldLayer": (lambda: layers.HopfieldLayer(2, 3, 4), (5, 8)),
    "HopfieldPooling": (lambda: layers.HopfieldPooling(2, 3), (5, 8)),
    "CompactRandomFeatures": (
        lambda: layers.CompactRandomFeatures(8),
        (8,),
    ),
    "PoolingMixer": (layers.PoolingMixer, (6, 6, 4)),
    "HourglassBlock": (lambda: layers.HourglassBlock(3), (8,)),
}
for rank in (1, 2, 3):
    LAYERS[f"InvertibleConv{rank}D"] = (
        functools.partial(
            getattr(layers, f"InvertibleConv{rank}D"), 4, 3, padding="same"
        ),
        (*(4,) * rank, 4),
    )
    for direction in ("Down", "Up"):
        name = f"Invertible{direction}sampling{rank}D"
        LAYERS[name] = getattr(layers, name), (*(4,) * rank, 8)
for name, arguments in LAYERS.items():
    ROWS[f"layers.{name}",] = functools.partial(check_layer, *arguments)


@row("layers.AdaB2N")
def balanced_norm():
    layer = layers.AdaB2N(2)
    all_finite(layer([batch(2, 5, 4), np.array([0, 1])], training=True))
    same_settings(layer)


# Models


def check_network(build, *arguments, **settings):
    """A network as `keras.Model`, with the published sizes turned down."""
    model = build(*arguments, classes=3, **settings)
    y = model.predict(batch(2, *model.input_shape[1:]), verbose=0)
    assert y.shape[-1] == 3
    all_finite(y)
    every_weight_is_found(model)


IMAGES = {"input_shape": (16, 16, 3)}
BIFPN = {"channels": (48, 7), "head_channels": (5, 6), "features": 8}
COLUMNS = {"channels": (4, 6), "depths": (1, 1), "columns": 2}


@row("models.RevBiFPN")
def rev_bifpn():
    check_network(models.RevBiFPN, **BIFPN, **IMAGES)


@row("models.RevCol")
def rev_col():
    check_network(models.RevCol, **COLUMNS, **IMAGES)


@row("models.ReversibleUNet")
def reversible_unet():
    check_network(models.ReversibleUNet, 2, (4, 6), 1, input_shape=(8, 8, 1))


@row("models.InvertibleUNet")
def invertible_unet():
    check_network(models.InvertibleUNet, 2, 4, (1, 1), input_shape=(7, 8, 1))


RESNET = {"filters": (4, 8), "depths": (1, 1), "stem_filters": 4}


@row("models.ReversibleResNet")
def reversible_resnet():
    check_network(models.ReversibleResNet, **RESNET, **IMAGES)


@row("models.ReversibleViT")
def reversible_vit():
    check_network(models.ReversibleViT, 1, 2, 8, 12, patch_size=8, **IMAGES)


def check_size(name, **settings):
    """Its own settings are counted in `models/vision_models_test.py`."""
    build = getattr(models, name)
    model = build(classes=3, **settings, **IMAGES)
    assert model.output_shape == (None, 3)
    every_weight_is_found(model)
    assert model.name == inspect.signature(build).parameters["name"].default


SIZES = {f"RevBiFPNS{i}": {**BIFPN, "extra_silos": 0} for i in range(7)}
for size in ("Tiny", "Small", "Base", "Large", "XLarge", "Huge"):
    SIZES[f"RevCol{size}"] = COLUMNS
for size in (38, 56, 104, 110, 164):
    SIZES[f"ReversibleResNet{size}"] = RESNET
for name, settings in SIZES.items():
    ROWS[f"models.{name}",] = functools.partial(check_size, name, **settings)


@row(
    "models.ReversibleViTTiny",
    "models.ReversibleViTSmall",
    "models.ReversibleViTBase",
)
def vits():
    try:  # variables have shapes and no values
        with keras.StatelessScope(initialize_variables=False):
            for size in ("Tiny", "Small", "Base"):
                # (PyTorch takes the state of a seed for a parameter there.)
                check_size(f"ReversibleViT{size}", drop_rate=0.0)
    finally:
        keras.utils.clear_session()


@row("models.sequence_from_modules")
def stack_of_modules():
    stack = models.sequence_from_modules([dense(4), dense(4)])
    x = batch(2, 4)
    all_finite(stack(x))
    every_weight_is_found(stack)
    same_settings(stack)


@row("models.ReversibleCausalLM")
def language_model():
    model = models.ReversibleCausalLM(11, 1, 4, 8, 12)
    tokens = np.array([[1, 2, 3]])
    assert model.predict(tokens, verbose=0).shape == (1, 3, 11)
    assert ops.shape(model.generate(tokens, 1)) == (1, 4)
    every_weight_is_found(model)
    same_settings(model)


@row("models.InvertibleAutoencoder")
def autoencoder():
    model = models.InvertibleAutoencoder([layers.InvertibleDense(4)])
    x = batch(2, 4)
    np.testing.assert_allclose(*to_numpy([model(x)]), x, atol=1e-5)
    every_weight_is_found(model)
    same_settings(model)


def joined(layer):
    """A block of NoProp, or a network of SelfTuning."""
    x, z = keras.Input((4,)), keras.Input((3,))
    y = layer([x, z])
    return keras.Model([x, z], y)


@row("models.NoProp")
def without_back_propagation():
    block = joined(Joined(3))
    model = models.NoProp([block], 3)
    model.compile("sgd")
    logs = model.fit(batch(8, 4), np.arange(8) % 3, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    every_weight_is_found(model)
    same_settings(model)


@row("models.SelfTuning")
def self_tuning():
    network = joined(layers.SelfTuningDense(1))
    model = models.SelfTuning(network, {"a": 0.0, "b": 1.0, "c": 2.0})
    model.compile("sgd", "mse")
    data = batch(8, 4), batch(8, 1)
    logs = model.fit(*data, tuning_data=data, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    every_weight_is_found(model)
    same_settings(model)


def translator():
    judges = [models.PatchDiscriminator((2,), name=name) for name in "ab"]
    conv = layers.InvertibleConv2D(3, 1)
    return models.InvAutoTranslator([conv], *judges)


@row(
    "models.InvAutoTranslator",
    "models.PatchDiscriminator",
    "callbacks.TranslationGrid",
)
def translation():
    model, x = translator(), batch(2, 4, 4, 3).clip(-1, 1)
    model.compile(run_eagerly=keras.config.backend() != "jax")
    logs = model.fit(x, x, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    every_weight_is_found(model)
    same_settings(model)
    same_settings(model.discriminator_a)
    grid = callbacks.TranslationGrid("picture.png", x, x)
    grid.set_model(model)


# What trains


def check_optimizer(cls, dtype="float32"):
    optimizer = cls(0.1)
    variable = keras.Variable(batch(64, 64), dtype=dtype, name="kernel")
    before = to_numpy([variable])[0].copy()
    optimizer.apply([ops.convert_to_tensor(batch(64, 64))], [variable])
    after = to_numpy([variable])[0]
    assert np.isfinite(after).all() and np.any(after != before)
    same_settings(optimizer)


for name in (
    *("AdaGradNorm", "Adam8bit", "AdamW8bit", "Lion8bit", "SGD8bit"),
    *("LDAdam", "MicroAdam", "Muon8bit", "SelectedAdam", "SinkGD"),
):
    cls = getattr(optimizers, name)
    ROWS[f"optimizers.{name}",] = functools.partial(check_optimizer, cls)


@row("optimizers.LISA")
def blocks_in_turn():
    # The variable is the block.
    check_optimizer(
        lambda rate: optimizers.LISA(rate, blocks=["kernel"], active_blocks=1)
    )


@row("optimizers.AdaptiveBatch")
def adaptive_batch():
    optimizer = optimizers.AdaptiveBatch(keras.optimizers.SGD(0.1))
    same_settings(optimizer)
    variable = keras.Variable(batch(4, 4), name="kernel")
    before = to_numpy([variable])[0].copy()
    for i in (1, 2):
        optimizer.apply([ops.convert_to_tensor(batch(4, 4))], [variable])
        moved = np.any(to_numpy([variable])[0] != before)
        assert moved == (i == 2)


@row("utils.layer_budgets")
def budgets():
    model = keras.Sequential([keras.Input((64,)), Dense(128)])
    model.compile("sgd", "mse")
    budget = utils.layer_budgets(model, [(batch(4, 64), batch(4, 128))])
    assert 0 < max(budget.values()) <= 3 / 256
    check_optimizer(lambda rate: optimizers.MicroAdam(rate, density=budget))


@row("optimizers.Unfreezing")
def unfreezing():
    check_optimizer(
        lambda rate: optimizers.Unfreezing(
            keras.optimizers.SGD(rate), [["kernel"]], interval=2
        )
    )


@row("constraints.StaticSparsity", "optimizers.MaskedOptimizer")
def sparse():
    constraint = constraints.StaticSparsity(0.75)
    same_settings(constraint)
    layer = Dense(4, kernel_constraint=constraint)
    layer.build((None, 8))
    assert constraints.StaticSparsity.start(layer) == 1
    kernel = to_numpy([layer.kernel])[0]
    assert np.count_nonzero(kernel) == 8
    assert constraints.StaticSparsity.release(layer) == 1
    check_optimizer(
        lambda rate: optimizers.MaskedOptimizer(keras.optimizers.SGD(rate))
    )


@row("optimizers.SixteenBit")
def wrapped():
    check_optimizer(
        lambda rate: optimizers.SixteenBit(keras.optimizers.SGD(rate)),
        dtype="bfloat16",
    )


@row("callbacks.AutoDrop", "callbacks.BanditLearningRate")
def schedules():
    x = batch(8, 2)
    for callback in (
        callbacks.AutoDrop("epoch"),
        callbacks.BanditLearningRate([0.1, 0.01]),
    ):
        model = keras.Sequential([keras.Input((2,)), Dense(1)])
        model.compile("sgd", "mse")
        logs = model.fit(
            x, x[:, :1], 4, epochs=2, verbose=0, callbacks=[callback]
        ).history
        assert len(logs["learning_rate"]) == 2


@row("optimizers.GradientProjection", "utils.input_bases")
def projected():
    basis = np.eye(64)[:, :1]
    check_optimizer(
        lambda rate: optimizers.GradientProjection(
            keras.optimizers.SGD(rate), {"kernel": basis}
        )
    )
    model = keras.Sequential([keras.Input((4,)), Dense(2)])
    bases = utils.input_bases(model, batch(8, 4))
    assert set(bases) == {v.path for v in model.weights}


@row(
    "callbacks.AbilityCurriculum",
    "callbacks.InstanceLearningRate",
    "callbacks.LearningCurve",
    "callbacks.SelfDistillation",
    "utils.SelectableDataset",
    "utils.item_difficulties",
)
def examples_one_by_one():
    x, labels = batch(8, 2), np.arange(8) % 2
    b = utils.item_difficulties((batch(3, 8) > 0).astype(int))
    data = utils.SelectableDataset(x, np.eye(2)[labels], batch_size=4)
    model = keras.Sequential([keras.Input((2,)), Dense(2, "softmax")])
    model.compile("sgd", "categorical_crossentropy")
    logs = model.fit(
        data,
        epochs=2,
        verbose=0,
        callbacks=[
            callbacks.AbilityCurriculum(data, b, (x, labels, b)),
            callbacks.InstanceLearningRate(data, (x, np.eye(2)[labels])),
            callbacks.SelfDistillation(data),
            callbacks.LearningCurve("loss"),
        ],
    ).history
    assert np.isfinite(logs["loss"]).all() and len(logs["ability"]) == 2


@row("callbacks.SubnetworkSampling")
def subnetworks():
    layer = layers.ElasticDense(4)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")
    choose = callbacks.SubnetworkSampling(lambda _: layer.set_active(units=2))
    model.fit(batch(4, 2), batch(4, 4), verbose=0, callbacks=[choose])
    assert (to_numpy([model(batch(4, 2))])[0][:, 2:] == 0).all()


@row("losses.PooledOutputsDistillation")
def pooled_outputs():
    loss = losses.PooledOutputsDistillation()
    x = batch(2, 3, 3, 2)
    assert float(loss(x, x)) == 0 < float(loss(x, -(x**2)))
    same_settings(loss)


@row("initializers.DeltaOrthogonal")
def initializer():
    start = initializers.DeltaOrthogonal()
    all_finite(start((3, 3, 4, 4)))
    same_settings(start)


@row("regularizers.Orthonormal")
def regularizer():
    penalty = regularizers.Orthonormal()
    assert abs(float(penalty(ops.eye(4)))) < 1e-5
    assert float(penalty(2 * ops.eye(4))) > 1e-5
    same_settings(penalty)


@row("metrics.OrthonormalityError")
def metric():
    error = metrics.OrthonormalityError()
    assert float(error(np.eye(4), np.eye(4))) == 0
    same_settings(error)


# Functions


@row("ops.adam_step", "ops.sink_gd_step")
def plain_steps():
    g = ops.convert_to_tensor(batch(8, 64))
    zeros = ops.zeros((8, 64))
    all_finite(our_ops.adam_step(g, zeros, zeros, 1), our_ops.sink_gd_step(g))


@row(
    "ops.quantize_4bit",
    "ops.dequantize_4bit",
    "ops.quantize_8bit",
    "ops.dequantize_8bit",
)
def codes():
    x = batch(8, 64)
    for quantize, dequantize, atol in (
        (our_ops.quantize_8bit, our_ops.dequantize_8bit, 0.03),
        (our_ops.quantize_4bit, our_ops.dequantize_4bit, 0.3),
    ):
        again = to_numpy([dequantize(*quantize(ops.convert_to_tensor(x)))])[0]
        np.testing.assert_allclose(again.reshape(x.shape), x, atol=atol)


@row(
    "ops.adam_8bit_step",
    "ops.Adam8bitState",
    "ops.lion_8bit_step",
    "ops.sgd_8bit_step",
)
def steps_of_8_bits():
    g = ops.convert_to_tensor(batch(8, 64))
    signed = our_ops.quantize_8bit(ops.zeros((8, 64)))
    square = our_ops.quantize_8bit(ops.zeros((8, 64)), signed=False)
    state = our_ops.Adam8bitState(*signed, *square)
    all_finite(our_ops.adam_8bit_step(g, state, 1)[0])
    all_finite(our_ops.lion_8bit_step(g, *signed)[0])
    all_finite(our_ops.sgd_8bit_step(g, *signed)[0])


@row("ops.linear_cross_entropy")
def loss_of_tokens():
    hidden, kernel = (
        ops.convert_to_tensor(batch(*x)) for x in ((3, 4), (4, 9))
    )
    losses = our_ops.linear_cross_entropy(hidden, kernel, ops.arange(3))
    assert tuple(ops.shape(losses)) == (3,)
    all_finite(losses)


@row("ops.binarize")
def two_values():
    y = our_ops.binarize(ops.convert_to_tensor([-0.5, 0.0, 2.0]))
    np.testing.assert_array_equal(to_numpy([y])[0], [-1, 1, 1])


@row("ops.block_top_k")
def top_k():
    values = our_ops.block_top_k(ops.convert_to_tensor(batch(2, 64)), 3)[1]
    assert tuple(ops.shape(values)) == (2, 3)


@row("ops.micro_adam_step", "ops.MicroAdamState", "ops.ld_adam_step")
def steps_of_an_optimizer():
    g = ops.convert_to_tensor(batch(64, 64))
    micro = optimizers.MicroAdam()
    micro.build([keras.Variable(g)])
    slots = [v.value for v in micro.variables[2:]]
    state = our_ops.MicroAdamState(*slots)
    all_finite(our_ops.micro_adam_step(g, state, 1)[0])
    projector = ops.eye(64)[:, :4]
    moments = ops.zeros((4, 64)), ops.zeros((4, 64))
    all_finite(our_ops.ld_adam_step(g, (projector, *moments), 1)[0])


@row("kernels.numba_ffi")
def numba_kernel():
    pytest.importorskip("numba")

    @kernels.numba_ffi(outputs={"y": "x"})
    def double(x, y):
        y[:] = 2 * x

    x = ops.convert_to_tensor(batch(3))
    np.testing.assert_array_equal(*to_numpy([double(x), 2 * x]))


@row(
    "config.set_kernels",
    "config.kernels",
    "config.report",
    "config.set_num_threads",
    "config.num_threads",
)
def settings_of_the_package():
    config.set_num_threads(1)
    assert config.num_threads() == 1
    config.set_num_threads(None)
    before = config.kernels()
    config.set_kernels("off")
    assert config.kernels() == "off"
    config.set_kernels(before)
    assert config.report(verbose=0)


@row("utils.convert_optimizer_state")
def state_of_another_optimizer():
    variables = [keras.Variable(np.ones((64, 64), "float32"))]
    source = keras.optimizers.Adam()
    source.apply([ops.ones((64, 64))], variables)
    target = utils.convert_optimizer_state(
        source, optimizers.Adam8bit(), variables
    )
    assert int(ops.convert_to_numpy(target.iterations)) == 1


@row("utils.average_statistics")
def statistics_of_processes():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization()]
    )
    before = [v.numpy() for v in model.non_trainable_variables]
    utils.average_statistics(model)  # there is one process
    for value, variable in zip(before, model.non_trainable_variables):
        np.testing.assert_array_equal(variable.numpy(), value)


@row("chunk_loss", "micro_batches", "release_gradients")
def steps_in_place():
    model = keras.Sequential([keras.Input((4,)), Dense(8), Dense(9)])
    assert micro_batches(chunk_loss(model), 2) is model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    logs = model.fit(batch(4, 4), np.arange(4), verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    release_gradients(micro_batches(model, 1))
    logs = model.fit(batch(4, 4), np.arange(4), verbose=0).history
    assert np.isfinite(logs["loss"]).all()


@row("save_in_16_bits")
def files_in_place():
    model = keras.Sequential([keras.Input((4,)), Dense(8, dtype="bfloat16")])
    assert save_in_16_bits(model) is model
    before = [np.array(v) for v in model.weights]
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/a.weights.h5")
        model.set_weights([0 * value for value in before])
        model.load_weights(f"{folder}/a.weights.h5")
    for value, variable in zip(before, model.weights):
        np.testing.assert_array_equal(value, np.array(variable))


@row("recompute")
def recomputing():
    blocks = [keras.Sequential([Dense(16), Dense(4)]) for _ in range(3)]
    model = keras.Sequential([keras.Input((4,)), *blocks])
    assert recompute(model) is model
    all_finite(model(batch(2, 4), training=True))


@row("utils.memory_plan", "utils.MemoryPlan")
def plan_of_memory():
    model = keras.Sequential([keras.Input((4,)), Dense(4)])
    plan = utils.memory_plan(model, 2, "1GiB", verbose=0)
    assert isinstance(plan, utils.MemoryPlan) and plan.fits


@row("utils.adapt_batch_norm")
def norms_of_a_model():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), norm])
    x = batch(3, 4)
    y = utils.adapt_batch_norm(model, target_weight=0.0)(x)
    np.testing.assert_allclose(*to_numpy([y, model(x)]), rtol=1e-5)


@row("callbacks.MomentumSchedule")
def momentum_schedule():
    coupling = layers.MomentumCoupling(Dense(2), 0.5)
    run = layers.ReversibleSequence([coupling])
    model = keras.Sequential([keras.Input((4,)), run])
    model.compile("sgd", "mse")
    x = batch(8, 4)
    schedule = callbacks.MomentumSchedule(0.25, 0.75, steps=2)
    model.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=[schedule])
    assert float(coupling.momentum) == 0.75


@row(
    "callbacks.ParallelAverage",
    "utils.average_weights",
    "utils.recompute_batch_norm",
)
def averages():
    x = batch(8, 2)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), Dense(1)]
    )
    model.compile("sgd", "mse")
    average = callbacks.ParallelAverage(
        2, switch_epoch=1, worker_epochs=1, recompute=x
    )
    model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[average])
    assert average.workers_done == 2
    assert utils.average_weights([model, model], into=model) is model
    assert utils.recompute_batch_norm(model, x) == 1


@row(
    "utils.align_classifier",
    "utils.class_statistics",
    "utils.least_squares_stitch",
    "utils.scale_task_vector",
)
def functions_of_weights():
    statistics = utils.class_statistics(batch(8, 3), np.arange(8) % 2)
    head = utils.least_squares_stitch(batch(8, 3), batch(8, 2))
    assert len(utils.align_classifier(head, *statistics, epochs=1)) == 1
    blocks = [Dense(4, name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input((4,)), *blocks])
    found = utils.scale_task_vector(model, model, ["first", "second"])
    for a, b in zip(found, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@row("utils.to_tune_mode", "utils.freeze_statistics", "utils.merge_batch_norm")
def tune_mode():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
        ]
    )
    assert utils.freeze_statistics(model) == utils.to_tune_mode(model) == 1
    x = batch(2, 4, 4, 2)
    all_finite(model(x, training=True) - utils.merge_batch_norm(model)(x))


@row("utils.check_reversibility")
def reversibility():
    layer = run()
    layer(batch(4, 8))
    found = utils.check_reversibility(layer, batch(4, 8))
    assert max(found.reconstruction) < 1e-4


@row(
    "utils.memory_report",
    "utils.MemoryReport",
    "utils.MemoryUsage",
    "utils.LayerMemory",
    "utils.saved_activation_bytes",
    "utils.optimizer_state_bytes",
)
def memory():
    model = keras.Sequential([keras.Input((8,)), Dense(64), Dense(1)])
    model.compile("adam", "mse")
    report = utils.memory_report(model, 16, verbose=0)
    assert isinstance(report, utils.MemoryReport)
    assert isinstance(report.usage["as it is"], utils.MemoryUsage)
    assert isinstance(report.layers[0], utils.LayerMemory)
    assert utils.saved_activation_bytes(model, batch(16, 8)) > 0
    model.optimizer.build(model.trainable_variables)
    state = utils.optimizer_state_bytes(model.optimizer)
    assert state >= 2 * 4 * model.count_params()


@row("utils.peak_bytes")
def peak():
    assert utils.peak_bytes(lambda: np.ones(2**22).sum()) >= 0


@row("utils.plot_learning_rate")
def plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    logs = {"loss": [2.0, 1.0], "learning_rate": [0.1, 0.1]}
    assert utils.plot_learning_rate(logs).axes
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("check", ROWS.values(), ids=[n[0] for n in ROWS])
def test_can_be_made_and_used(check):
    check()
