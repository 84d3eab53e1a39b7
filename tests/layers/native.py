"""Rows of layers that hold what is the backend's own."""

import tempfile

from keras import layers
from keras import ops

from tests.layers.awkward_layers import Own
from tests.layers.row import BACKEND
from tests.layers.row import BATCH
from tests.layers.row import MODES
from tests.layers.row import Row
from tests.layers.row import normal


def torch_rows():
    import torch
    from torch import nn

    def wrapped(make):
        return lambda: layers.TorchModuleWrapper(
            make(), output_shape=(BATCH, 4)
        )

    def module():
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5))

    def parameter():
        p = torch.nn.Parameter(torch.tensor(normal(4, seed=2)))
        return Own(lambda x: torch.tanh(x * p)), p

    def module_around():
        module = torch.nn.Linear(4, 4)
        return Own(lambda x: torch.tanh(module(x))), *module.parameters()

    def in_place(x):
        y = torch.sin(x)
        y.mul_(2).add_(x)
        return y

    def input_in_place(x):
        return torch.sin(x.mul_(2))

    def checkpointed(x):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(lambda x: torch.tanh(x) ** 2, x, use_reentrant=False)

    return {
        "TorchModuleWrapper": Row(wrapped(module)),
        "module with buffers": Row(wrapped(lambda: nn.BatchNorm1d(4))),
        "torch parameter": Row(parameter),
        "torch module around": Row(module_around),
        "in place": Row(lambda: Own(in_place)),
        "input in place": Row(
            lambda: Own(input_in_place),
            refused=dict.fromkeys(MODES, "writes into its input in place"),
        ),
        "checkpoint inside": Row(lambda: Own(checkpointed)),
        "torch.rand": Row(lambda: Own(lambda x: x * torch.rand(4, 4))),
    }


def tensorflow_rows():
    import tensorflow as tf

    def saved_layer():
        class Saved(tf.Module):
            def __init__(self):
                super().__init__()
                self.w = tf.Variable(normal(4, 4, seed=2))

            @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
            def serve(self, x):
                return tf.tanh(x @ self.w)

        with tempfile.TemporaryDirectory() as path:
            tf.saved_model.save(Saved(), path)
            return layers.TFSMLayer(path)

    def variable():
        w = tf.Variable(normal(4, seed=2))
        return Own(lambda x: tf.tanh(x * w)), w

    def written():
        w = tf.Variable(normal(4, seed=2), trainable=False)

        def call(x):
            w.assign_add(tf.reduce_mean(x, axis=0))
            return tf.tanh(x)

        return Own(call), w

    def written_in_function():
        w = tf.Variable(normal(4, seed=2), trainable=False)

        @tf.function
        def call(x):
            if tf.reduce_any(x < 0):
                w.assign(tf.reduce_mean(x, axis=0))
            return tf.tanh(x)

        return Own(call), w

    def generator():
        draw = tf.random.Generator.from_seed(1)
        return Own(lambda x: x * draw.normal((4, 4))), draw.state

    @tf.function
    def graph(x):
        return tf.tanh(x) ** 2

    return {
        "TFSMLayer": Row(saved_layer),
        "tf.Variable": Row(variable),
        "tf.Variable written": Row(
            written, refused=dict.fromkeys(MODES, "writes a variable")
        ),
        "tf.Variable written in a function": Row(
            written_in_function,
            refused=dict.fromkeys(MODES, "writes a variable"),
        ),
        "tf.function": Row(lambda: Own(graph)),
        "tf.random": Row(
            lambda: Own(lambda x: x * tf.random.normal((4, 4))),
            refused=dict.fromkeys(MODES, "draws random numbers"),
        ),
        "tf.random.Generator": Row(
            generator, refused=dict.fromkeys(MODES, "draws random numbers")
        ),
        "tf.random in a function": Row(
            lambda: Own(tf.function(lambda x: tf.nn.dropout(x, 0.5))),
            refused=dict.fromkeys(MODES, "draws random numbers"),
        ),
        "tf.random, stateless": Row(
            lambda: Own(
                lambda x: x * tf.random.stateless_normal((4, 4), (1, 2))
            )
        ),
    }


def jax_rows():
    import jax

    def dense(params, inputs):
        return jax.numpy.tanh(inputs @ params["w"])

    def init(rng, inputs):
        return {"w": jax.random.normal(rng, (4, 4))}

    def moving(params, state, rng, inputs, training):
        y = inputs * params["w"]
        if training:
            y = y + jax.random.normal(rng, inputs.shape)
        return y + state, 0.5 * state + 0.5 * inputs.mean(0)

    def init_moving(rng, inputs):
        return {"w": jax.numpy.ones(4)}, jax.numpy.zeros(4)

    def scanned(x):
        return jax.lax.scan(
            lambda c, r: (c + r, jax.numpy.sin(c * r)), x[0], x
        )[1]

    return {
        "JaxLayer": Row(lambda: layers.JaxLayer(dense, init, seed=1)),
        "JaxLayer with state": Row(
            lambda: layers.JaxLayer(moving, init_moving, seed=1)
        ),
        "jax.checkpoint": Row(
            lambda: Own(jax.checkpoint(lambda x: ops.tanh(x) ** 2))
        ),
        "jax.lax.scan": Row(lambda: Own(scanned)),
        "jax.jit": Row(lambda: Own(jax.jit(lambda x: ops.tanh(x) ** 2))),
        "key that is a constant": Row(
            lambda: Own(
                lambda x: x * jax.random.normal(jax.random.key(1), (4, 4))
            )
        ),
    }


NATIVE = globals()[f"{BACKEND}_rows"]()
