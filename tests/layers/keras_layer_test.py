"""Keras' own test of layers, run on each of ours.

It looks at configs, saving, symbolic and eager calls, shapes, dtypes, training
under a compiler and mixed precision. The one file of the tests that imports
`keras.src`: the test has no public name.
"""

import keras
import pytest
from keras import layers
from keras.src.testing import TestCase

import keras_efficient.layers
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import InvertibleDense
from keras_efficient.layers import InvertibleLeakyReLU
from tests.layers.own_table import OWN


def dense(units=2):
    return layers.Dense(units, "tanh")


def blocks(count=2):
    return [AdditiveCoupling(dense()) for _ in range(count)]


def built(layer):
    layer.build(VECTOR)
    return layer


VECTOR = (2, 4)
SEQUENCE = (2, 3, 4)
IMAGE = (2, 4, 4, 4)
VOLUME = (2, 4, 4, 4, 4)
STREAMS = ((2, 4, 4, 4), (2, 2, 2, 4))
TRANSFORMER = {"intermediate_dim": 4, "num_heads": 1}
# Function that returns arguments, and the shape of the input. A new layer is
# one row.
ROWS = {
    "AdditiveCoupling": (lambda: {"f": dense(), "g": dense()}, VECTOR),
    "AffineCoupling": (lambda: {"f": dense(4), "g": dense(4)}, VECTOR),
    "ConvNeXtBlock": (lambda: {"kernel_size": 3}, IMAGE),
    "DepthwiseConv3D": (lambda: {}, VOLUME),
    "Inverse": (lambda: {"layer": built(InvertibleDense(4))}, VECTOR),
    "InvertibleConv1D": (lambda: {"filters": 4, "kernel_size": 2}, (2, 4, 4)),
    "InvertibleConv2D": (lambda: {"filters": 4, "kernel_size": 2}, IMAGE),
    "InvertibleConv3D": (lambda: {"filters": 4, "kernel_size": 2}, VOLUME),
    "OrthogonalMixing": (lambda: {}, (2, 4)),
    "InvertibleDense": (lambda: {"units": 4}, VECTOR),
    "InvertibleDownsampling1D": (lambda: {}, (2, 4, 4)),
    "InvertibleDownsampling2D": (lambda: {}, IMAGE),
    "InvertibleDownsampling3D": (lambda: {}, VOLUME),
    "InvertibleLeakyReLU": (lambda: {"learned": True}, VECTOR),
    "InvertibleResidual": (
        lambda: {"layer": InvertibleDense(4, use_bias=False)},
        VECTOR,
    ),
    "InvertibleSequential": (
        lambda: {"layers": [InvertibleDense(4), InvertibleLeakyReLU()]},
        VECTOR,
    ),
    "InvertibleUpsampling1D": (lambda: {}, (2, 4, 4)),
    "InvertibleUpsampling2D": (lambda: {}, IMAGE),
    "InvertibleUpsampling3D": (lambda: {}, (2, 2, 2, 2, 8)),
    "MBConv": (lambda: {"filters": 4}, IMAGE),
    "MomentumCoupling": (lambda: {"f": dense()}, VECTOR),
    "Recompute": (lambda: {"layer": dense(3)}, VECTOR),
    "RevSilo": (
        lambda: {
            "down": [[layers.Conv2D(4, 3, 2, padding="same")]],
            "up": [[layers.UpSampling2D()]],
        },
        STREAMS,
    ),
    "ReversibleColumn": (
        lambda: {"levels": [layers.Concatenate()]},
        (VECTOR, VECTOR),
    ),
    "ReversibleMBConv": (lambda: {"filters": 4}, IMAGE),
    "ReversibleParallel": (lambda: {"blocks": blocks()}, (VECTOR, VECTOR)),
    "ReversibleSequence": (lambda: {"blocks": blocks()}, VECTOR),
    "ReversibleTransformerDecoder": (lambda: TRANSFORMER, SEQUENCE),
    "ReversibleTransformerEncoder": (lambda: TRANSFORMER, SEQUENCE),
    "Tiled": (lambda: {"layer": dense(4), "tiles": 2}, SEQUENCE),
}
BACKEND = keras.config.backend()
BLOCKS = "A block of runs: tests/layers/invertible_blocks_test.py has it."
NO_ROW = {
    "ReversibleLayer": "It is the base class of the others.",
    **dict.fromkeys(("ReversibleConcatenate", "ReversibleSplit"), BLOCKS),
}


class KerasTest(TestCase):
    def runTest(self):
        """Nothing: the test is called below."""


@pytest.mark.parametrize("name", ROWS)
def test_passes_the_test_that_keras_has_for_layers(name):
    if BACKEND == "jax" and "Transformer" in name:
        pytest.skip("XLA has no products of float16 for attention on a CPU")
    arguments, shape = ROWS[name]
    KerasTest().run_layer_test(
        getattr(keras_efficient.layers, name), arguments(), input_shape=shape
    )


def test_every_public_layer_has_a_row():
    public = {
        name
        for name, value in vars(keras_efficient.layers).items()
        if isinstance(value, type) and issubclass(value, layers.Layer)
    }
    # Small layers of our own have a table of their own: "EvoNorm B0".
    own = {name.split()[0] for name in OWN}
    assert public - own == set(ROWS) | set(NO_ROW)
