"""Compilers that optimize less: most programs of tests run once or twice."""

import keras
import numpy as np
from keras import ops

# Of a process that a test starts.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def optimize_less(value):
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", value)
    else:
        import tensorflow as tf

        options = {"disable_meta_optimizer": value}
        tf.config.optimizer.set_experimental_options(options)


def draw_by_numpy(monkeypatch):
    """Compile nothing for initial values: JAX would, for each shape."""
    initializers = keras.initializers
    for cls, draw in (
        (initializers.VarianceScaling, _scaled),
        (initializers.RandomNormal, _normal),
        (initializers.TruncatedNormal, _normal),
        (initializers.RandomUniform, _uniform),
    ):
        monkeypatch.setattr(cls, "__call__", _as_tensor(draw))


def _as_tensor(draw):
    def call(self, shape, dtype=None):
        seed = self.get_config()["seed"]
        rng = np.random if seed is None else np.random.default_rng(seed)
        values = np.asarray(draw(self, rng, tuple(shape)))
        dtype = dtype or keras.config.floatx()
        return ops.convert_to_tensor(values.astype("float64"), dtype)

    return call


def _scaled(self, rng, shape):
    *window, inputs, outputs = (1, 1, *shape)
    fans = {"fan_in": inputs, "fan_out": outputs}
    fans["fan_avg"] = (inputs + outputs) / 2
    variance = self.scale / max(np.prod(window) * fans[self.mode], 1)
    return rng.normal(scale=np.sqrt(variance), size=shape)


def _normal(self, rng, shape):
    return rng.normal(self.mean, self.stddev, shape)


def _uniform(self, rng, shape):
    return rng.uniform(self.minval, self.maxval, shape)
