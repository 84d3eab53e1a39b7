"""Sparse pre-training and dense fine-tuning."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient import optimizers
from keras_efficient.constraints import StaticSparsity
from keras_efficient.ops.uniform_noise import hashes
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.marks import once
from tests.optimizers.table import normal
from tests.optimizers.table import stepper


def mask_of(*shape, sparsity=0.75, seed=0):
    return ops.convert_to_numpy(StaticSparsity(sparsity, seed).mask(shape))


def test_a_mask_has_exactly_its_ones_and_is_the_same_everywhere():
    """Its places are those of the smallest hashes, by the first of equals."""
    for sparsity, shape in ((0.75, (16, 24)), (0.5, (7, 3)), (0.9, (3, 3, 5))):
        mask = mask_of(*shape, sparsity=sparsity, seed=3)
        size = mask.size
        assert mask.sum() == round((1 - sparsity) * size)
        places = ops.arange(size, dtype="int32")
        numbers = ops.convert_to_numpy(hashes(places, 0, 3))
        order = np.argsort(numbers, kind="stable")[: mask.sum()]
        assert mask.reshape(-1)[order].all()
    assert mask_of(5, 5, sparsity=0.0).all()
    assert (mask_of(16, 24) != mask_of(16, 24, seed=1)).any()
    # What is in files holds for ever.
    expected = [[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]
    np.testing.assert_array_equal(mask_of(2, 5, sparsity=0.7), expected)


def model(sparsity=0.75):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(
                32,
                "tanh",
                kernel_constraint=StaticSparsity(sparsity),
                name="hidden",
            ),
            layers.Dense(1),
        ]
    )


def zeros(network):
    kernel = ops.convert_to_numpy(network.get_layer("hidden").kernel)
    return np.count_nonzero(kernel == 0)


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(1e-2, weight_decay=0.1),
    "MicroAdam": lambda: optimizers.MicroAdam(1e-2, min_size=16),
    "SinkGD": lambda: optimizers.MaskedOptimizer(
        optimizers.SinkGD(1e-2, min_size=16)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_until_they_are_released(name, tmp_path):
    x = normal(64, 8)
    y = x[:, :1]
    network = model()
    assert StaticSparsity.start(network) == 1
    assert zeros(network) == 192
    network.compile(OPTIMIZERS[name](), "mse", **fit_mode(LAST))
    network.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert zeros(network) == 192
    assert StaticSparsity.release(network) == 1
    # Neither the variable nor a file brings it back.
    assert network.get_layer("hidden").kernel.constraint is None
    network.save(tmp_path / "model.keras")
    network = keras.models.load_model(tmp_path / "model.keras", compile=False)
    network.compile("adam", "mse", **fit_mode(LAST))
    network.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert zeros(network) < 3
    with pytest.raises(ValueError, match="none with it"):
        StaticSparsity.release(network)


def test_an_optimizer_sees_no_gradient_of_masked_weights():
    """The rows of SinkGD are normalized without them; all clip without."""
    shape, constraint = (16, 16), StaticSparsity(0.75)
    mask = mask_of(*shape)
    results = []
    for wrap in (optimizers.MaskedOptimizer, lambda optimizer: optimizer):
        variable = keras.Variable(normal(*shape), name="kernel")
        variable.constraint = constraint
        optimizer = wrap(
            optimizers.SinkGD(0.1, min_size=16, global_clipnorm=1.0)
        )
        step_fn = stepper(optimizer, [variable])
        gradient = normal(*shape, seed=1)
        if wrap is not optimizers.MaskedOptimizer:
            gradient = gradient * mask
        results.append(step_fn([gradient])[0])
    np.testing.assert_allclose(*results, atol=1e-6)
    assert (results[0][~mask] == 0).all()


@once
def test_scale_at_the_start():
    kept = mask_of(8, 32)
    plain, rescaled = model(), model()
    StaticSparsity.start(plain)
    StaticSparsity.start(rescaled, rescale=True)
    a, b = (
        ops.convert_to_numpy(m.get_layer("hidden").kernel)
        for m in (plain, rescaled)
    )
    np.testing.assert_allclose(2 * a, b, rtol=1e-6)
    assert ((a != 0) == kept).all()


@once
def test_what_cannot_be_right_is_refused():
    for sparsity in (1.0, -0.1):
        with pytest.raises(ValueError, match="`sparsity` must be"):
            StaticSparsity(sparsity)
    network = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="none with it"):
        StaticSparsity.start(network)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="around this one.*Received"):
        optimizers.MaskedOptimizer(scaled)
