"""One training pass of a model on any backend, with all its gradients."""

import keras
from keras import ops

MODES = {
    "jax": ("jit",),
    "tensorflow": ("eager", "graph", "xla"),
    "torch": ("eager",),
}[keras.config.backend()]


def to_numpy(values):
    return [ops.convert_to_numpy(value) for value in values]


def gradients(model, inputs, mode=MODES[0]):
    """Return `(outputs, input_gradients, variable_gradients)` as arrays.

    Differentiated is the sum of the squares of all outputs and of the losses
    that layers added. Non-trainable variables are updated, as in training.
    """
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    run = globals()[f"_{keras.config.backend()}"]
    return tuple(to_numpy(part) for part in run(model, inputs, mode))


def _total(model, inputs, call):
    outputs, losses = call(inputs[0] if len(inputs) == 1 else inputs)
    outputs = keras.tree.flatten(outputs)
    return sum(ops.sum(y * y) for y in outputs) + sum(losses), outputs


def _jax(model, inputs, mode):
    import jax

    state = [v.value for v in model.non_trainable_variables]

    def total(params, inputs):
        new_state = None

        def call(x):
            nonlocal new_state
            outputs, new_state, losses = model.stateless_call(
                params, state, x, training=True, return_losses=True
            )
            return outputs, losses

        loss, outputs = _total(model, inputs, call)
        return loss, (outputs, new_state)

    params = [v.value for v in model.trainable_variables]
    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (d_params, d_inputs), (outputs, new_state) = gradient(params, inputs)
    for variable, value in zip(model.non_trainable_variables, new_state):
        variable.assign(value)
    return outputs, d_inputs, d_params


def _tensorflow(model, inputs, mode):
    import tensorflow as tf

    params = [v.value for v in model.trainable_variables]

    def step(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss, outputs = _total(
                model, inputs, lambda x: (model(x, training=True), model.losses)
            )
        d_inputs, d_params = tape.gradient(loss, (inputs, params))
        return outputs, d_inputs, d_params

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    return step(inputs)


def _torch(model, inputs, mode):
    import torch

    inputs = [x.detach().requires_grad_() for x in inputs]
    params = [v.value for v in model.trainable_variables]
    loss, outputs = _total(
        model, inputs, lambda x: (model(x, training=True), model.losses)
    )
    found = torch.autograd.grad(loss, [*inputs, *params])
    outputs = [y.detach() for y in outputs]
    return outputs, found[: len(inputs)], found[len(inputs) :]
