"""One training pass of a model on any backend, with all its gradients."""

import keras
from keras import ops

from tests.compilers import jit_options

MODES = {
    "jax": ("jit",),
    "tensorflow": ("eager", "graph", "xla"),
    "torch": ("eager",),
}[keras.config.backend()]
# For what is not about modes: how a user's model trains by default.
LAST = MODES[-1]
GRAPH = MODES[len(MODES) // 2]  # on TensorFlow: without XLA
ENDS = MODES[::2]  # on TensorFlow without the one in between


def fit_mode(mode):
    """Return the arguments of `compile` for a mode."""
    return {
        "run_eagerly": mode == "eager",
        "jit_compile": mode in ("jit", "xla"),
    }


def to_numpy(values):
    return [ops.convert_to_numpy(value) for value in values]


def gradients(model, inputs, mode=MODES[0]):
    """Return `(outputs, input_gradients, variable_gradients)` as arrays.

    Differentiated is the sum of the squares of all outputs and of the losses
    that layers added. Non-trainable variables are updated, as in training.
    """
    return gradient_step(model, mode)(inputs)


def gradient_step(model, mode=MODES[0]):
    """Return a function from inputs to `gradients`, compiled once.

    It is of the model as it is: what changes later goes unnoticed.
    """
    step = globals()[f"_{keras.config.backend()}"](model, mode)

    def run(inputs):
        parts = step([ops.convert_to_tensor(x) for x in inputs])
        return tuple(to_numpy(part) for part in parts)

    return run


def _total(model, inputs, call):
    outputs, losses = call(inputs[0] if len(inputs) == 1 else inputs)
    outputs = keras.tree.flatten(outputs)
    return sum(ops.sum(y * y) for y in outputs) + sum(losses), outputs


def _jax(model, mode):
    import jax

    def total(params, inputs, state):
        new_state = None

        def call(x):
            nonlocal new_state
            outputs, new_state, losses = model.stateless_call(
                params, state, x, training=True, return_losses=True
            )
            return outputs, losses

        loss, outputs = _total(model, inputs, call)
        return loss, (outputs, new_state)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    gradient = jax.jit(gradient, **jit_options())

    def step(inputs):
        params = [v.value for v in model.trainable_variables]
        state = [v.value for v in model.non_trainable_variables]
        (d_params, d_inputs), (outputs, new_state) = gradient(
            params, inputs, state
        )
        for variable, value in zip(model.non_trainable_variables, new_state):
            variable.assign(value)
        return outputs, d_inputs, d_params

    return step


def _tensorflow(model, mode):
    import tensorflow as tf

    params = [v.value for v in model.trainable_variables]

    def step(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss, outputs = _total(
                model, inputs, lambda x: (model(x, training=True), model.losses)
            )
        # What is not read has no gradient, which counts as zero.
        d_inputs, d_params = tape.gradient(
            loss, (inputs, params), unconnected_gradients="zero"
        )
        return outputs, d_inputs, d_params

    if mode == "eager":
        return step
    return tf.function(step, jit_compile=mode == "xla")


def _torch(model, mode):
    import torch

    params = [v.value for v in model.trainable_variables]

    def step(inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        loss, outputs = _total(
            model, inputs, lambda x: (model(x, training=True), model.losses)
        )
        # What is not read has no gradient, which counts as zero.
        found = torch.autograd.grad(
            loss, [*inputs, *params], allow_unused=True, materialize_grads=True
        )
        outputs = [y.detach() for y in outputs]
        return outputs, found[: len(inputs)], found[len(inputs) :]

    return step
