import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import LAST
from tests.gradients import MODES
from tests.gradients import fit_mode
from tests.gradients import gradient_step
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import function
from tests.twins import relative_errors

BACKEND = keras.config.backend()


def pair(build):
    """A model with `Recompute` around layers, and one without."""
    models = []
    for recompute in (True, False):
        keras.utils.set_random_seed(7)
        inputs = x = keras.Input((8,))
        if recompute:
            x = Recompute(build())(x)
        else:
            for layer in build():
                x = layer(x)
        models.append(keras.Model(inputs, layers.Dense(3)(x)))
    return models


def stateful():
    nested = ReversibleSequence([AdditiveCoupling(layers.Dropout(0.2))])
    return [function(3), function(None), nested, layers.BatchNormalization()]


@pytest.mark.parametrize("mode", MODES)
def test_gradients_and_state_equal_those_without(mode):
    models, found = pair(stateful), []
    for model in models:
        keras.utils.set_random_seed(1)
        step = gradient_step(model, mode)
        for _ in range(2):
            parts = step([batch(16, 8)])
        found.append((*parts, to_numpy(model.non_trainable_variables)))
    for ours, theirs in zip(*found):
        assert max(relative_errors(ours, theirs)) < 1e-4


def test_fit_equals_that_without():
    histories = []
    for model in pair(stateful):
        model.compile(keras.optimizers.SGD(0.01), "mse", **fit_mode(LAST))
        keras.utils.set_random_seed(1)
        x = batch(48, 8)
        fit = model.fit(x, x[:, :3], 16, epochs=2, shuffle=False, verbose=0)
        histories.append(fit.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-4)


def remat_gradients(seeded, mode):
    """Gradient of sum(dropout(w x)) with `keras.remat`, and the mask."""
    dropout = layers.Dropout(0.5, seed=3 if seeded else None)
    dense = layers.Dense(64, use_bias=False, kernel_initializer="ones")

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense, self.dropout = dense, dropout

        def call(self, x, training=False):
            return keras.remat(
                lambda x: self.dropout(self.dense(x), training=training)
            )(x)

    inputs = keras.Input((1,))
    model = keras.Model(inputs, Block()(inputs))
    return gradients(model, [np.ones((1, 1), "float32")], mode)


@pytest.mark.parametrize("mode", MODES)
def test_keras_remat_is_still_wrong_where_recompute_is_right(mode):
    """The reason for `Recompute`.

    For y = dropout(w x) with w = x = 1, y is 0 or 2 and the gradient of
    sum(y ** 2) by w is 4 y: its zeros are those of y. When this test fails,
    Keras has mended `keras.remat`, and `Recompute` may have had its day.
    """
    try:
        (y,), _, (d_w,) = remat_gradients(True, mode)
    except Exception:
        pass  # it does not even run
    else:
        assert np.any((d_w == 0) != (y == 0))

    inner = [
        layers.Dense(64, use_bias=False, kernel_initializer="ones"),
        layers.Dropout(0.5, seed=3),
    ]
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Recompute(keras.Sequential(inner))(inputs))
    (y,), _, (d_w,) = gradients(model, [np.ones((1, 1), "float32")], mode)
    assert 0 < np.sum(y == 0) < 64
    np.testing.assert_array_equal(d_w, 4 * y)


def test_keeps_the_input_of_each_segment_only():
    def segments(depth):
        return [
            keras.Sequential(
                [
                    layers.Dense(512, "gelu"),
                    layers.Dropout(0.1),
                    layers.Dense(512, "gelu"),
                    layers.Dense(8),
                ]
            )
            for _ in range(depth)
        ]

    x = np.ones((1024, 8), "float32")
    ours, plain = (
        [
            saved_activation_bytes(pair(lambda: segments(depth))[i], x)
            for depth in (2, 8)
        ]
        for i in (0, 1)
    )
    assert plain[1] > 3 * plain[0]
    # Six more segments keep six more inputs, and nothing of their inside.
    assert ours[1] - ours[0] < 0.05 * (plain[1] - plain[0])
    if BACKEND == "torch":
        assert ours[1] - ours[0] <= 6 * (x.nbytes + 16 * 1024)


def test_further_arguments_and_inputs_that_are_not_floats():
    attention = layers.MultiHeadAttention(2, 4, dropout=0.2, seed=1)
    query, value = keras.Input((5, 8)), keras.Input((7, 8))
    outputs = Recompute(attention, {"use_causal_mask": True})(
        query, value=value, attention_mask=keras.ops.ones((1, 5, 7), bool)
    )
    model = keras.Model([query, value], outputs)
    x = [batch(2, 5, 8), batch(2, 7, 8)]
    y, d_inputs, _ = gradients(model, x)
    assert all(np.any(d != 0) for d in d_inputs)
    moved = x[1].copy()
    moved[:, 6] += 1  # no query looks there, past the diagonal
    np.testing.assert_array_equal(
        to_numpy([model([x[0], moved])]), to_numpy([model(x)])
    )

    embed = [layers.Embedding(10, 8), layers.Dense(3)]
    tokens = keras.Input((4,), dtype="int32")
    model = keras.Model(tokens, Recompute(embed)(tokens))
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.array([[1, 2, 3, 0]])
    losses = model.fit(x, np.ones((1, 4, 3)), epochs=20, verbose=0)
    assert losses.history["loss"][-1] < 0.1 * losses.history["loss"][0]


def test_several_outputs_and_a_mask():
    class Two(layers.Layer):
        def call(self, x, mask=None):
            if mask is not None:
                x = x * ops.cast(mask, x.dtype)[..., None]
            return {"sum": ops.sum(x, -1), "square": [x * x]}

    inputs = keras.Input((4, 8))
    masked = layers.Masking()(inputs)
    model = keras.Model(inputs, Recompute(Two())(masked))
    x = batch(2, 4, 8)
    x[:, 2] = 0
    y, (d_x,), _ = gradients(model, [x])
    assert model.output["square"][0].shape == (None, 4, 8)
    expected = 2 * np.sum(x, -1, keepdims=True) + 4 * x**3
    expected[:, 2] = 0
    np.testing.assert_allclose(d_x, expected, rtol=1e-4, atol=1e-5)


def test_saves_and_loads(tmp_path):
    model, plain = pair(stateful)
    x = batch(4, 8)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    arguments = {"use_causal_mask": True}
    config = Recompute(layers.Dense(3), arguments).get_config()
    assert Recompute.from_config(config).get_config() == config
    assert [v.shape for v in model.weights] == [v.shape for v in plain.weights]


def test_a_subclassed_model_loads_its_weights(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Recompute([layers.Dense(8), layers.Dense(3)])

        def call(self, x):
            return self.inner(x)

    x, models = batch(4, 8), [Subclassed(), Subclassed()]
    expected = models[0](x)
    models[0].save_weights(tmp_path / "run.weights.h5")
    models[1](x)
    models[1].load_weights(tmp_path / "run.weights.h5")
    np.testing.assert_array_equal(*to_numpy([models[1](x), expected]))


def test_bad_layers_are_refused():
    with pytest.raises(TypeError, match="`layer` must be a `keras.layers"):
        Recompute(ops.tanh)
    with pytest.raises(ValueError, match="must not be an empty list"):
        Recompute([])

    class Opaque(layers.Layer):
        def call(self, x):
            return object()

    with pytest.raises(TypeError, match="'opaque' returns an object of"):
        Recompute(Opaque())(batch(2, 4))
