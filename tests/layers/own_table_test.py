"""Each small layer of ours, against its oracle, wherever it may stand."""

import inspect

import keras
import pytest
from keras import ops

from tests.layers.own_row import built
from tests.layers.own_row import check_row
from tests.layers.own_row import difference
from tests.layers.own_row import pair
from tests.layers.own_row import stir
from tests.layers.own_row import weights_of
from tests.layers.own_table import OWN

each_row = pytest.mark.parametrize("name", OWN)


@each_row
def test_a_layer_equals_its_oracle(name, tmp_path):
    assert not check_row(OWN[name], tmp_path / "layer.keras")


@each_row
def test_a_mask_goes_through_a_layer_of_sequences(name):
    row = OWN[name]
    layer = built(row)
    if row.x.ndim != 3 or row.more:
        return
    takes = "mask" in inspect.signature(layer.call).parameters
    assert takes == (row.mask is not None)
    y = layer(keras.layers.Masking()(keras.Input(row.x.shape[1:])))
    assert (getattr(y, "_keras_mask", None) is not None) == row.keeps_mask


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="Its second compiler."
)
def test_all_layers_equal_their_oracles_under_xla():
    import tensorflow as tf

    layers = [built(row) for row in OWN.values()]
    for layer in layers:
        stir(layer)
    weights = [weights_of(layer) for layer in layers]
    inputs = [
        [ops.convert_to_tensor(x) for x in (row.x, *row.more)]
        for row in OWN.values()
    ]

    @tf.function(jit_compile=True)
    def train(inputs):
        return [
            layer(x if len(x) > 1 else x[0], training=True)
            for layer, x in zip(layers, inputs, strict=True)
        ]

    found = train(inputs)
    wrong = []
    for name, w, y in zip(OWN, weights, found, strict=True):
        row = OWN[name]
        expected, _ = pair(row.oracle(w, row.x.astype("float64"), True))
        wrong += difference(name, y, expected, row.tolerance)
    assert not wrong
