"""Training steps of Keras' trainer, run in parts, on JAX."""

import jax
import jax.numpy as jnp
import keras

from keras_efficient.backend.jax_chunks import over_chunks

gradient_hooks = None  # XLA updates as soon as it can


def divided_train_step(model, micro, state, data):
    """Run a training step in parts, a loop in the program, and update once.

    Args:
        model: A compiled `keras.Model`.
        micro: `micro.divide(data, call)` returns how the batch is divided,
            with the attributes `leaves`, its tensors, `examples` and `size`,
            that of a part; `micro.part(division, leaves)` is the context of a
            part, in which `model.compute_loss` returns what it adds.
        state: What a training step of JAX gets first.
        data: The batch.

    Returns:
        What a training step returns.
    """
    trainable, others, optimizer, metrics = state
    division = micro.divide(
        data,
        lambda x: model.stateless_call(trainable, others, x, training=False)[0],
    )
    gradient = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)

    def step(carry, leaves):
        total, sums, others, metrics = carry
        with micro.part(division, leaves) as (x, y, sample_weight):
            (_, (loss, y_pred, others, metrics)), found = gradient(
                trainable,
                others,
                metrics,
                x,
                y,
                sample_weight,
                training=True,
                optimizer_variables=optimizer,
            )
            metrics = _updated(
                model,
                metrics,
                model.compute_metrics,
                x,
                y,
                y_pred,
                sample_weight,
            )[1]
        sums = jax.tree_util.tree_map(jnp.add, sums, found)
        return (total + loss, sums, others, metrics), ()

    zeros = jax.tree_util.tree_map(jnp.zeros_like, trainable)
    carry = jnp.zeros(()), zeros, others, metrics
    carry, _ = over_chunks(step, carry, division.leaves, division.size, [])
    total, sums, others, metrics = carry
    trainable, optimizer = model.optimizer.stateless_apply(
        optimizer, sums, trainable
    )

    def logs():
        tracker = next(m for m in model.metrics if m.name == "loss")
        tracker.update_state(total, sample_weight=division.examples)
        return model.get_metrics_result()

    logs, metrics = _updated(model, metrics, logs)
    return logs, (trainable, others, optimizer, metrics)


def _updated(model, metrics, update, *args):
    """Return `update(*args)` and the values of metrics' variables then."""
    variables = model.metrics_variables
    with keras.StatelessScope(zip(variables, metrics)) as scope:
        result = update(*args)
    return result, [scope.get_current_value(v) for v in variables]
