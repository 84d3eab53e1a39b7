"""Rows of layers that read, write, take or return more than tensors."""

import collections
import random

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.layers import awkward_layers as own
from tests.layers import calls
from tests.layers.awkward_layers import Own
from tests.layers.row import BATCH
from tests.layers.row import MODES
from tests.layers.row import RESIZES
from tests.layers.row import Row
from tests.layers.row import normal

SEQUENCE = normal(BATCH, 3, 4)
TOKENS = np.array([[1, 2, 3], [4, 1, 0], [2, 0, 0], [3, 3, 1]], "int32")
PADDED = SEQUENCE * (TOKENS > 0)[..., None].astype("float32")
Pair = collections.namedtuple("Pair", ("first", "second"))


# What a call reads.
def lora(parent=layers.Dense, frozen=False):
    layer = parent(4) if parent is layers.Dense else parent()
    layer.build((BATCH, 4))
    dense = getattr(layer, "inner", layer)
    layer.trainable = not frozen
    dense.trainable = True
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(0.5 * np.ones((2, 4)))
    return layer


def frozen(layer):
    layer.trainable = False
    return layer


def partly_frozen():
    layer = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(4)])
    layer.layers[0].trainable = False
    return layer


def tied_lambda():
    dense = layers.Dense(4, use_bias=False)
    dense.build((BATCH, 4))
    return layers.Lambda(lambda y: y @ ops.transpose(dense.kernel)), dense


def tied_head():
    """An output layer that shares its matrix with the embedding before."""
    embedding = layers.Embedding(5, 4)
    embedding.build((BATCH, 3))
    weights = [embedding]  # in a list that the layer does not know

    def head(x):
        y = ops.tanh(x @ ops.transpose(weights[0].embeddings))
        return y @ weights[0].embeddings

    return Own(head), embedding


def shared_part():
    dense = layers.Dense(4, "tanh")
    return Own(lambda x: dense(x) * x, dense), dense


def variable(trainable):
    def make():
        v = keras.Variable(normal(4, seed=2), trainable=trainable)
        return Own(lambda x: ops.tanh(x * v)), v

    return make


# What a call reads of tensors.
def closure():
    box = {}
    layer = Own(lambda x: ops.tanh(x) * box["h"])
    layer.box = lambda: box  # a function is not tracked
    return layer


def close_over(f, x, training):
    layer = getattr(f, "layers", [f])[0]
    layer.box()["h"] = ops.sin(x)
    return f(ops.cos(x), training=training)


def constant():
    c = ops.convert_to_tensor(normal(4, seed=2))
    return Own(lambda x: ops.tanh(x * c + ops.ones(4)))


# What a call writes.
def metric_around():
    metric = keras.metrics.Mean()

    def measure(x):
        metric.update_state(ops.mean(x * x))
        return ops.tanh(x)

    return Own(measure), metric


def state_around():
    v = keras.Variable(np.zeros(4, "float32"), trainable=False)

    def count(x):
        v.assign_add(ops.mean(x, axis=0))
        return ops.tanh(x + v)

    return Own(count), v


def generator_around():
    generator = keras.random.SeedGenerator(3)
    layer = Own(lambda x: x * keras.random.normal((4, 4), seed=generator))
    return layer, generator.state


def numbers(generator):
    return ops.convert_to_tensor(generator.normal(size=4), "float32")


def hidden_generator():
    generator = np.random.default_rng(1)
    return Own(lambda x: x * numbers(generator))


def noisy():
    return keras.Sequential(
        [
            layers.BatchNormalization(momentum=0.5),
            layers.Dropout(0.5, seed=1),
            layers.Dense(4, "tanh", activity_regularizer="l2"),
            layers.GaussianNoise(0.3),
        ]
    )


def run():
    return ReversibleSequence(
        [AdditiveCoupling(layers.Dense(2, "tanh"), layers.Dropout(0.5))] * 2
    )


def pair_of_inputs():
    inputs = keras.Input((4,)), keras.Input((4,))
    x = layers.Dense(4, "tanh")(inputs[0])
    return keras.Model(inputs, [x * inputs[1], layers.Dropout(0.5)(x)])


def mixed(policy):
    return lambda: keras.Sequential(
        [
            layers.Dense(4, "tanh", dtype=policy),
            layers.BatchNormalization(),
            layers.Dense(4, dtype=policy),
        ]
    )


def regularized():
    return layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l1")


def int8():
    layer = layers.Dense(4)
    layer.build((BATCH, 4))
    layer.quantize("int8")
    return layer


def embed_masked():
    return layers.Embedding(5, 4, mask_zero=True)


AWKWARD = {
    "LoRA": Row(lora),
    "LoRA in a frozen parent": Row(lambda: lora(own.Parent, frozen=True)),
    "frozen": Row(lambda: frozen(layers.Dense(4, "tanh"))),
    "frozen BatchNormalization": Row(
        lambda: frozen(layers.BatchNormalization())
    ),
    "partly frozen": Row(partly_frozen),
    "int8": Row(int8),
    "tied in a Lambda": Row(tied_lambda),
    "tied head": Row(tied_head, TOKENS, lambda embedding: embedding),
    "shared part": Row(shared_part, before=lambda dense: dense),
    "variable around": Row(variable(trainable=True)),
    "state around, read": Row(variable(trainable=False)),
    "tensor around": Row(closure, call=close_over, in_run=None, symbolic=False),
    "constant around": Row(constant),
    "metric": Row(own.Measures, untrained=("jax fit",)),
    "metric around": Row(metric_around, untrained=("jax fit",)),
    "state around, written": Row(state_around),
    "centers by a moving average": Row(own.CentersByMovingAverage),
    "writes twice": Row(own.WritesTwice, untrained=("torch",)),
    "reads, then writes": Row(own.ReadsThenWrites),
    "writes only": Row(own.WritesOnly),
    "writes in inference": Row(own.WritesInInference),
    "counts": Row(own.Counts),
    "normalizes its weight": Row(
        own.NormalizesItsWeight, untrained=("torch coupling",)
    ),
    "adds losses": Row(own.AddsLosses),
    "regularized": Row(regularized),
    "draws": Row(own.Draws),
    "generator around": Row(generator_around),
    "seed that is a number": Row(
        lambda: Own(lambda x: x * keras.random.normal((4, 4), seed=5))
    ),
    "global generator": Row(
        lambda: Own(lambda x: x * keras.random.normal((4, 4))),
        only=("tensorflow", "torch"),
    ),
    # A program draws once, when it is traced.
    "generators of Python and NumPy": Row(
        lambda: Own(lambda x: x * numbers(np.random) + random.random()),
        untrained=("fit",),
    ),
    "generator of its own": Row(
        hidden_generator,
        refused=dict.fromkeys(
            ("tensorflow recompute", "torch recompute"),
            "returned other numbers",
        ),
        untrained=("fit", "jax"),
        in_run=None,
    ),
    "no argument `training`": Row(own.Silent),
    "training in its own hand": Row(own.Firm),
    "training from around": Row(noisy, call=calls.no_training),
    "called twice": Row(noisy, call=calls.twice, in_run=None),
    "uses a mask": Row(own.UsesMask, PADDED, layers.Masking),
    "makes a mask": Row(own.MakesMask, PADDED, layers.Masking),
    "makes a mask of none": Row(own.MakesMask, SEQUENCE),
    "mask by name": Row(
        lambda: layers.LSTM(4, return_sequences=True),
        PADDED,
        call=calls.given_mask,
        in_run=None,
    ),
    "mask made inside": Row(
        lambda: keras.Sequential(
            [embed_masked(), layers.GRU(4, return_sequences=True)]
        ),
        TOKENS,
        refused=RESIZES,
    ),
    "mask in a coupling": Row(
        lambda: layers.GRU(4, return_sequences=True), TOKENS, embed_masked
    ),
    "second tensor": Row(own.Second, call=calls.second, in_run=None),
    "second by keyword": Row(own.Second, call=calls.by_keyword, in_run=None),
    "second of NumPy": Row(own.Second, call=calls.numpy_second, in_run=None),
    "second a number": Row(own.Second, call=calls.number_second, in_run=None),
    "any arguments": Row(
        own.AnyArguments, call=calls.any_arguments, in_run=None, symbolic=False
    ),
    "all kinds of arguments": Row(
        own.AllKinds, call=calls.all_kinds, in_run=None, symbolic=False
    ),
    "context": Row(own.Conditioned, call=calls.context, in_run=calls.context),
    "dictionary": Row(
        lambda: Own(lambda x: x["b"] * x["a"][0]),
        call=calls.dictionary,
        in_run=None,
    ),
    "two inputs": Row(pair_of_inputs, call=calls.both, in_run=None),
    "leaves a tensor": Row(
        own.LeavesATensor,
        call=calls.with_what_is_left,
        in_run=calls.with_what_is_left,
        refused={"scan": "cannot hand out"},
        symbolic=False,
    ),
    "adds to an attribute": Row(
        own.AddsToAnAttribute,
        call=calls.with_the_sum,
        in_run=None,
        symbolic=False,
    ),
    "fills a list": Row(
        own.FillsAList, refused=dict.fromkeys(MODES, "puts tensors into a list")
    ),
    # Elsewhere it is a tensor of the graph in which it was first computed.
    "fills a cache": Row(own.FillsACache, only=("torch",)),
    # Of several outputs the first one is added to a stream.
    "several outputs": Row(own.Returns),
    "named tuple": Row(lambda: Own(lambda x: Pair(ops.sin(x), ops.cos(x)))),
    "no float among the outputs": Row(
        lambda: Own(lambda x: ops.argmax(x, axis=-1)), refused=RESIZES
    ),
    "opaque output": Row(
        own.Opaque,
        refused=dict.fromkeys(
            MODES, "tensors cannot be found|must (be tensors|return one tensor)"
        ),
    ),
    "misspelt argument": Row(
        lambda: layers.Dropout(0.5),
        call=calls.misspelt,
        in_run=None,
        refused={"recompute": "unexpected keyword argument 'trainign'"},
    ),
    "one argument too many": Row(
        lambda: layers.Dense(4),
        call=calls.second,
        in_run=None,
        refused={"recompute": "multiple values for argument 'training'"},
    ),
    "mixed_bfloat16": Row(mixed("mixed_bfloat16"), tolerance=5e-2),
    "mixed_float16": Row(mixed("mixed_float16"), tolerance=5e-3),
    "float64": Row(
        lambda: layers.Dense(4, "tanh", dtype="float64"),
        only=("tensorflow", "torch"),
    ),
    "branches": Row(own.Branches),
    "custom gradient": Row(lambda: Own(own.straight_through)),
    "noisy": Row(noisy),
    "run": Row(run),
    "Recompute": Row(lambda: Recompute(noisy())),
    "in TimeDistributed": Row(
        lambda: layers.TimeDistributed(noisy()), SEQUENCE
    ),
}
