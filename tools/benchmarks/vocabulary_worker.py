"""The process of `vocabulary.py` that measures one backend."""

import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_efficient.ops import linear_cross_entropy
from keras_efficient.ops.vocabulary_chunks import Loss
from keras_efficient.ops.vocabulary_chunks import weighted_loss
from keras_efficient.utils import peak_bytes


def run(options):
    """Return bytes and seconds of each contender."""
    rng = np.random.default_rng(0)
    shape = options.width, options.words
    hidden = rng.normal(size=(options.tokens, options.width))
    kernel = rng.normal(size=shape) / options.width**0.5
    labels = rng.integers(0, options.words, options.tokens)
    tensors = [ops.cast(x, options.dtype) for x in (hidden, kernel)]
    y = ops.convert_to_tensor(labels, "int32")
    steps = {
        name: compiled(fn, tensors)
        for name, fn in contenders(y, options).items()
    }
    found = {name: {"peak": measure(step)} for name, step in steps.items()}
    # On a CPU, seconds of the process: others may be at work, too.
    on_cpu = options.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    seconds = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    for name, times in seconds.items():
        found[name]["seconds"] = statistics.median(times)
        found[name]["ratio"] = statistics.median(
            a / b for a, b in zip(times, seconds["plain"])
        )
    return found


def contenders(y, options):
    ones = ops.ones(y.shape)

    def plain(hidden, kernel):
        z = ops.cast(ops.matmul(hidden, kernel), "float32")
        return ops.sum(
            ops.sparse_categorical_crossentropy(y, z, from_logits=True)
        )

    def gathered(hidden, kernel):
        z = ops.cast(ops.matmul(hidden, kernel), "float32")
        z = ops.take_along_axis(ops.log_softmax(z), y[:, None], axis=-1)
        return -ops.sum(z)

    def recomputed(hidden, kernel):
        losses = linear_cross_entropy(
            hidden, kernel, y, chunk_size=options.chunk_size
        )
        return ops.sum(losses)

    def with_loss(hidden, kernel):
        loss = Loss(chunk_size=options.chunk_size)
        return weighted_loss(hidden, (kernel,), y, ones, loss, None)[0]

    found = {
        "plain": plain,
        "plain, log-softmax": gathered,
        "gradients with the loss": with_loss,
        "recomputed": recomputed,
    }
    if keras.config.backend() == "torch":
        found.update(of_torch(y))
    return found


def of_torch(y):
    import torch

    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return {}
    options = torch.nn.LinearCrossEntropyOptions()
    y = y.long()

    def fn(reduction):
        def loss(hidden, kernel):
            return torch.nn.functional.linear_cross_entropy(
                hidden, kernel.T, y, reduction=reduction, options=options
            ).sum()

        return loss

    return {"torch, sum": fn("sum"), "torch, none": fn("none")}


def compiled(fn, tensors):
    """Return a function that computes the loss and all gradients."""
    if keras.config.backend() == "jax":
        import jax

        step = jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))
        program = step.lower(*tensors).compile()

        def run():
            return jax.block_until_ready(program(*tensors))

        run.memory = program.memory_analysis()
        return run
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def step(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = fn(*tensors)
            return value, tape.gradient(value, tensors)

        return lambda: float(step(*tensors)[0])
    import torch

    tensors = [x.detach().requires_grad_() for x in tensors]

    def run():
        value = fn(*tensors)
        found = torch.autograd.grad(value, tensors)
        if value.is_cuda:
            torch.cuda.synchronize()
        return value.detach(), found

    return run


def measure(step):
    if hasattr(step, "memory"):
        memory = step.memory
        return memory.temp_size_in_bytes + memory.output_size_in_bytes
    step()  # compiles
    return peak_bytes(step)
