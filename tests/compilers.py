"""Compilers that optimize less: most programs of tests run once or twice."""

import os

import keras
import numpy as np
from keras import ops

# Of a process that a test starts.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
# With these XLA compiles for a CPU in a third of the time.
EMITTERS = "xla_cpu_use_fusion_emitters"
FLAGS = [f"--{EMITTERS}=false", "--xla_cpu_parallel_codegen_split_count=1"]


def set_flags():
    """Set those of XLA, which reads them when it first compiles."""
    flags = os.environ.get("XLA_FLAGS", "").split() + FLAGS
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))


def jit_options():
    """What `jax.jit` takes where a test asked for the full compiler."""
    # A compiler for a GPU knows no such option.
    if _less or FLAGS[0] not in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {"compiler_options": {EMITTERS: True}}


_less = False


def optimize_less(value):
    global _less
    _less = value
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", value)
    else:
        import tensorflow as tf

        options = {"disable_meta_optimizer": value}
        tf.config.optimizer.set_experimental_options(options)


def compiled(fn, on_tensorflow="eager", **options):
    """Compile on JAX, where each operation alone takes long to compile.

    On TensorFlow nothing, or a `"graph"`, or `"xla"`. Options go to `jax.jit`.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(fn, **options)
    if keras.config.backend() == "tensorflow" and on_tensorflow != "eager":
        import tensorflow as tf

        xla = on_tensorflow == "xla"
        return tf.function(fn, jit_compile=xla, autograph=False)
    return fn


def build_optimizers_first(monkeypatch):
    """Trace a step once: TensorFlow does twice if the first one makes state."""
    make = keras.Model.make_train_function

    def make_train_function(self, force=False):
        if self.built and self.optimizer and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return make(self, force)

    monkeypatch.setattr(keras.Model, "make_train_function", make_train_function)


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
