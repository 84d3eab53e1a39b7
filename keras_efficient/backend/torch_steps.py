"""Training steps of Keras' trainer, run in parts, on PyTorch."""

import contextlib
import functools

import torch

# Entries of gradients that wait to be used together. For a small tensor the
# calls from Python take longer than what they compute.
BATCH_SIZE = 2**22


def divided_train_step(model, micro, data):
    """Run a training step in parts, and update once.

    See `keras_efficient.backend.jax_steps.divided_train_step`.
    """
    with torch.no_grad():
        division = micro.divide(data, lambda x: model(x, training=False))
    model.zero_grad()
    total = 0.0
    for start in range(0, division.examples, division.size):
        part = slice(start, start + division.size)
        leaves = [x[part] for x in division.leaves]
        with micro.part(division, leaves) as (x, y, sample_weight):
            y_pred = model(x, training=True)
            loss = model.compute_loss(x, y, y_pred, sample_weight)
            model.optimizer.scale_loss(loss).backward()
            total = total + loss.detach()
            model.compute_metrics(x, y, y_pred, sample_weight)
        del y_pred, loss  # or they are alive beside those of the next part
    variables = model.trainable_variables
    gradients = [v.value.grad for v in variables]
    with torch.no_grad():
        model.optimizer.apply(gradients, variables)
        _tracker(model).update_state(total, sample_weight=division.examples)
    del gradients
    model.zero_grad()
    return model.get_metrics_result()


def _tracker(model):
    return next(m for m in model.metrics if m.name == "loss")


@contextlib.contextmanager
def gradient_hooks(variables, update):
    """Within, `update(variables, gradients)` is called in the backward pass.

    It is called once for each variable, as soon as its gradient is complete,
    which is dropped then. Small gradients wait for each other, until they have
    as many entries as the largest variable, or `BATCH_SIZE`.
    """
    largest = max((v.value.numel() for v in variables), default=0)
    enough = min(BATCH_SIZE, largest)
    waiting = []

    def use(pairs):
        with torch.no_grad():
            update(*map(list, zip(*pairs)))

    def take(variable, tensor):
        pair = variable, tensor.grad
        tensor.grad = None
        if tensor.numel() >= enough:
            use([pair])
            return
        waiting.append(pair)
        if sum(gradient.numel() for _, gradient in waiting) >= enough:
            use(waiting)
            waiting.clear()

    with contextlib.ExitStack() as stack:
        for v in variables:
            hook = v.value.register_post_accumulate_grad_hook(
                functools.partial(take, v)
            )
            stack.callback(hook.remove)
        yield
        if waiting:
            use(waiting)
