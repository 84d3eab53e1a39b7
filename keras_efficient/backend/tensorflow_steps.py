"""Training steps of Keras' trainer, run in parts, on TensorFlow."""

import tensorflow as tf

from keras_efficient.backend.tensorflow_chunks import over_chunks

gradient_hooks = None  # XLA updates as soon as it can


def divided_train_step(model, micro, data):
    """Run a training step in parts, a loop in the graph, and update once.

    See `keras_efficient.backend.jax_steps.divided_train_step`.
    """
    division = micro.divide(data, lambda x: model(x, training=False))
    variables = model.trainable_variables
    values = [v.value for v in variables]
    reached = set()  # the variables that have a gradient

    def step(carry, leaves):
        total, sums = carry
        with micro.part(division, leaves) as (x, y, sample_weight):
            with tf.GradientTape() as tape:
                y_pred = model(x, training=True)
                loss = model.compute_loss(x, y, y_pred, sample_weight)
                scaled = model.optimizer.scale_loss(loss)
            found = tape.gradient(scaled, values)
            model.compute_metrics(x, y, y_pred, sample_weight)
        reached.update(i for i, d in enumerate(found) if d is not None)
        sums = [
            # Those of an embedding come as slices.
            old if d is None else old + tf.convert_to_tensor(d)
            for old, d in zip(sums, found)
        ]
        return (total + loss, sums), ()

    carry = tf.zeros(()), [tf.zeros(v.shape, v.dtype) for v in values]
    (total, sums), _ = over_chunks(
        step, carry, division.leaves, division.size, []
    )
    model.optimizer.apply_gradients(
        (d if i in reached else None, v)
        for i, (d, v) in enumerate(zip(sums, variables))
    )
    # Keras divides losses by the number of replicas.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    tracker = next(m for m in model.metrics if m.name == "loss")
    tracker.update_state(total * replicas, sample_weight=division.examples)
    return model.get_metrics_result()
