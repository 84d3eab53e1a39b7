"""The process of `published.py` that trains contenders on one backend."""

import gc
import json
import statistics
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers
from keras import ops

import keras_efficient
from benchmarks.blocks import attention_and_feed_forward
from benchmarks.blocks import run_of_blocks
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.utils import optimizer_state_bytes
from keras_efficient.utils import peak_bytes

HEAD_WIDTH = 64  # of GPT-2
LEARNING_RATE = 1e-4
WARM_UP = 3
CLASSES = 1000
# 50,304 tokens: the 50,257 of GPT-2, and what makes 128 divide them.
GPT2 = {
    "gpt2-124m": {"depth": 12, "width": 768},
    "gpt2-774m": {"depth": 36, "width": 1280},
    "gpt2-trial": {"depth": 2, "width": 64, "length": 32, "tokens": 256},
}
REVCOL = {
    "revcol-tiny": (224, {}),
    "revcol-trial": (32, {"channels": (8, 16), "depths": (1, 1)}),
}


def run(mode, network, options):
    """Train contenders until one fails; write what was found after each."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    if mode == "torch":  # what its convolutions work in
        keras.config.set_image_data_format("channels_first")
    rows = []
    for name in options.contender:
        row = {"contender": name}
        try:
            row |= train(mode, network, name, options)
        except Exception as error:
            line = (str(error).strip() or "no message").splitlines()[0]
            row["fails"] = f"{type(error).__name__}: {line}"[:200]
        rows.append(row)
        Path(options.worker).write_text(json.dumps({"rows": rows}))
        if "fails" in row:
            return
        release()


def train(mode, network, name, options):
    variant, optimizer = name.split(", ")
    build = gpt2 if network in GPT2 else revcol
    model, x, y = build(network, variant, options.batch_size)
    step, state_bytes = training(mode, model, optimizer, x, y)
    losses = [step() for _ in range(WARM_UP)]
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(losses).all():
        raise ArithmeticError(f"the losses are not finite: {losses}")
    state = state_bytes()
    held = bytes_of(model.variables) + state
    on_top = bytes_on_top(mode, model, step, held)
    seconds_a_step = statistics.median(seconds)
    examples = x.size if network in GPT2 else len(x)
    return {
        "parameters": model.count_params(),
        "state bytes": state,
        "held bytes": held,
        "bytes on top": on_top,
        "peak bytes": held + on_top,
        "seconds": seconds,
        "ms": 1000 * seconds_a_step,
        "examples": examples,
        "a second": examples / seconds_a_step,
        "losses": losses,
    }


def gpt2(network, variant, batch_size):
    """Return the model, tokens and those that are to follow them."""
    size = {"length": 1024, "tokens": 50304, **GPT2[network]}
    tokens = keras.Input((size["length"],), dtype="int32")
    embedding = layers.ReversibleEmbedding(
        size["tokens"],
        size["width"],
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
    )
    places = ops.ones_like(tokens) * ops.arange(size["length"])
    x = embedding(tokens)
    x = x + layers.Embedding(size["length"], size["width"])(places)
    pairs = [
        attention_and_feed_forward(size["width"], HEAD_WIDTH)
        for _ in range(size["depth"])
    ]
    x = layers.LayerNormalization()(run_of_blocks(variant, pairs, x))
    model = keras.Model(tokens, embedding(x, reverse=True))
    shape = batch_size or 8, size["length"]
    rng = np.random.default_rng(0)
    x, y = rng.integers(size["tokens"], size=(2, *shape), dtype="int32")
    return model, x, y


def revcol(network, variant, batch_size):
    """Return the model, images and their classes."""
    edge, size = REVCOL[network]
    shape = [edge, edge]
    first = keras.config.image_data_format() == "channels_first"
    shape.insert(0 if first else 2, 3)
    model = keras_efficient.models.RevColTiny(
        input_shape=tuple(shape),
        classes=CLASSES,
        classifier_activation=None,
        reversible=variant == "reversible",
        **size,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size or 64, *shape)).astype("float32")
    return model, x, rng.integers(CLASSES, size=len(x), dtype="int32")


def training(mode, model, optimizer, x, y):
    """Return a function that makes a step, and one for the bytes of state.

    The first returns the loss, and waits until the device is done.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    if mode == "torch":
        return training_with_torch(model, optimizer, loss, x, y)
    found = keras_optimizer(optimizer)
    model.compile(found, loss, jit_compile=mode != "tensorflow")
    return (
        lambda: float(model.train_on_batch(x, y)),
        lambda: optimizer_state_bytes(found),
    )


def keras_optimizer(name):
    module = keras if name == "AdamW" else keras_efficient
    return getattr(module.optimizers, name)(LEARNING_RATE)


def training_with_torch(model, optimizer, loss, x, y):
    import torch

    from benchmarks.optimizers_peers import tensors_of

    variables = model.trainable_variables
    parameters = [variable.value for variable in variables]
    if optimizer == "AdamW":
        found = torch.optim.AdamW(parameters, LEARNING_RATE, fused=True)
        update = found.step
    else:
        found = keras_optimizer(optimizer)
        found.build(variables)

        def update():
            found.apply([parameter.grad for parameter in parameters], variables)

    def step():
        value = loss(y, model(x, training=True))
        value.backward()
        with torch.no_grad():
            update()
        for parameter in parameters:
            parameter.grad = None
        return value.item()

    def state_bytes():
        if optimizer != "AdamW":
            return optimizer_state_bytes(found)
        states = found.state.values()
        return sum(t.nbytes for state in states for t in tensors_of(state))

    return step, state_bytes


def bytes_on_top(mode, model, step, held):
    """Return what a step takes above parameters and optimizer state."""
    if mode == "jax":
        import jax

        memory = jax.local_devices()[0].memory_stats()
        if memory:  # of a GPU
            return memory["peak_bytes_in_use"] - held
    found = peak_bytes(step)
    if found is None:
        raise RuntimeError("the peak of a step cannot be measured here")
    return found


def release():
    """Give back what the last contender held."""
    keras.utils.clear_session()
    gc.collect()
    if keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
