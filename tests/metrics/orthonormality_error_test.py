import keras
import numpy as np
import pytest

from keras_efficient import layers
from keras_efficient import models
from keras_efficient.metrics import OrthonormalityError


def test_mean_squares_of_both_parts():
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    units = np.eye(6)
    diagonal = np.mean((np.diag(matrix) - 1) ** 2)
    rest = np.mean(matrix[units == 0] ** 2)
    for part, expected in (("diagonal", diagonal), ("off_diagonal", rest)):
        metric = OrthonormalityError(part)
        assert float(metric.result()) == 0
        metric.update_state(units[:4], matrix[:4])  # in two batches
        metric.update_state(units[4:], matrix[4:])
        np.testing.assert_allclose(float(metric.result()), expected, rtol=1e-6)
        metric.reset_state()
        assert float(metric.result()) == 0


def test_of_a_projection_by_hand():
    dense = layers.InvertibleDense(
        3, kernel_initializer=keras.initializers.Identity()
    )
    with pytest.warns(UserWarning, match="maps 4 features to 3"):
        model = models.InvertibleAutoencoder([dense])
        model.build((None, 4))
    units = np.eye(4, dtype="float32")
    found = model.linear(units)
    assert float(OrthonormalityError()(units, found)) == 0.25
    assert float(OrthonormalityError("off_diagonal")(units, found)) == 0


def test_config_and_bad_input():
    metric = OrthonormalityError("off_diagonal", name="rest")
    again = OrthonormalityError.from_config(metric.get_config())
    assert again.part == "off_diagonal" and again.name == "rest"
    with pytest.raises(ValueError, match="`part` must be 'diagonal' or"):
        OrthonormalityError("upper")
