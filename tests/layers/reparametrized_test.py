"""A layer called with a function of its kernel."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import Recompute
from keras_efficient.layers import Reparametrized
from tests.gradients import LAST
from tests.gradients import fit_mode
from tests.gradients import gradients
from tests.marks import once
from tests.twins import batch


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
def half_tanh(kernel):
    return 0.5 * ops.tanh(kernel)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Scale(layers.Layer):
    """A transform with a weight, and a count of its calls in state."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, kernel):
        self.calls.assign_add(1.0)
        return kernel * self.scale


CASES = {
    "Dense": (lambda: layers.Dense(3, "tanh"), (4,)),
    "EinsumDense": (
        lambda: layers.EinsumDense("ab,bc->ac", (3,), bias_axes="c"),
        (4,),
    ),
    "Conv2D": (lambda: layers.Conv2D(4, 2, groups=2), (4, 4, 2)),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(3, 2), (4, 2)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(2), (4, 4, 2)),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(3, 2), (4, 2)),
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.Dense(3)),
        (2, 4),
    ),
}
if keras.config.backend() == "tensorflow":  # no such kernel on the CPU
    CASES["Conv2D"] = (lambda: layers.Conv2D(3, 2), (4, 4, 2))


def model(make, shape, wrap=lambda layer: layer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    return keras.Model(inputs, wrap(make())(inputs))


def kernel_place(values):
    """Of the kernel that is meant: the last with as many axes as any."""
    rank = max(x.ndim for x in values)
    return max(i for i, x in enumerate(values) if x.ndim == rank)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_layer_with_another_kernel(name):
    """Outputs, and gradients by the chain rule."""
    make, shape = CASES[name]
    x = [batch(2, *shape)]
    plain = model(make, shape)
    ours = model(make, shape, lambda layer: Reparametrized(layer, half_tanh))
    values = [w + 0.1 for w in plain.get_weights()]
    ours.set_weights(values)
    place = kernel_place(values)
    slope = 0.5 * (1 - np.tanh(values[place]) ** 2)
    replaced = [*values]
    replaced[place] = 0.5 * np.tanh(values[place])
    plain.set_weights(replaced)
    actual, expected = (gradients(m, x, LAST) for m in (ours, plain))
    expected[2][place] *= slope
    for a, b in zip(sum(actual, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # The plain layer is what it was: its weights load, and back.
    for a, b in zip(ours.get_weights(), values, strict=True):
        np.testing.assert_array_equal(a, b)


def test_transforms_are_nested_and_have_weights_and_state():
    """In `fit`, alone and inside `Recompute`: the state moves once a step."""
    x, y = batch(8, 4), batch(8, 3)
    results = []
    for wrap in (lambda layer: layer, Recompute):
        scale = Scale()
        dense = layers.Dense(
            3, kernel_regularizer="l2", activity_regularizer="l2"
        )
        layer = Reparametrized(Reparametrized(dense, scale), half_tanh)
        network = model(lambda: layer, (4,), wrap)
        network.compile("sgd", "mse", **fit_mode(LAST))
        history = network.fit(x, y, batch_size=4, epochs=2, verbose=0)
        assert float(ops.convert_to_numpy(scale.calls)) == 4
        assert len(network.trainable_variables) == 3
        expected = 0.5 * np.tanh(ops.convert_to_numpy(dense.kernel))
        expected *= ops.convert_to_numpy(scale.scale)
        np.testing.assert_allclose(
            ops.convert_to_numpy(network(x)),
            x @ expected + ops.convert_to_numpy(dense.bias),
            atol=1e-5,
        )
        # The regularizer sees the kernel as it is.
        penalty = 0.01 * np.sum(ops.convert_to_numpy(dense.kernel) ** 2)
        np.testing.assert_allclose(
            float(ops.convert_to_numpy(dense.losses[-1])), penalty, rtol=1e-5
        )
        results.append(history.history["loss"])
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_mixed_precision_and_16_bits():
    """The function is computed in float32 whatever the layer computes in."""
    seen = []

    def note(kernel):
        seen.append(keras.backend.standardize_dtype(kernel.dtype))
        return kernel

    for policy in ("mixed_bfloat16", "bfloat16"):
        layer = Reparametrized(layers.Dense(3, dtype=policy), note)
        y = layer(batch(2, 4))
        assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert set(seen) == {"float32"}


@once
def test_masks_and_saving(tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    embedding = layers.Embedding(5, 3, mask_zero=True)
    x = Reparametrized(embedding, half_tanh)(inputs)
    network = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    y = ops.convert_to_numpy(network(tokens))
    table = 0.5 * np.tanh(ops.convert_to_numpy(embedding.embeddings))
    expected = np.stack([(table[1] + table[2]) / 2, table[3]])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(tokens)), y)


@once
def test_what_cannot_be_right_is_refused():
    x = batch(2, 4)
    with pytest.raises(TypeError, match="`layer` must be"):
        Reparametrized(half_tanh, half_tanh)
    with pytest.raises(TypeError, match="`transform` must be"):
        Reparametrized(layers.Dense(3), 0.5)
    with pytest.raises(ValueError, match="has no kernel"):
        Reparametrized(layers.LayerNormalization(), half_tanh)(x)
    with pytest.raises(ValueError, match="must keep its shape"):
        Reparametrized(layers.Dense(3), ops.transpose)(x)
    spectral = layers.SpectralNormalization(layers.Dense(3))
    with pytest.raises(ValueError, match="assigns to its kernel"):
        Reparametrized(spectral, half_tanh)(x, training=True)
    layer = Reparametrized(layers.Dense(3), half_tanh)
    layer(x)
    layer.layer.enable_lora(2)
    with pytest.raises(ValueError, match="has LoRA"):
        layer(x)
