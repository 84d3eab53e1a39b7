"""Each small layer of ours, against its oracle, wherever it may stand."""

import inspect

import keras
import pytest

from tests.layers.own_row import built
from tests.layers.own_row import check_row
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
