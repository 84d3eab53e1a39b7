"""Compilers that optimize less: most programs of tests run once or twice."""

import keras

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
