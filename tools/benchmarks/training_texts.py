"""Trials of `training_methods` on a small transformer and Python's help."""

import pydoc_data.topics

import keras
import numpy as np

import keras_efficient as ke
from keras_efficient.utils.layer_budgets import allocate
from keras_efficient.utils.layer_budgets import ld_adam_settings
from keras_efficient.utils.layer_budgets import mean_gradients
from keras_efficient.utils.layer_budgets import micro_adam_settings

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LENGTH, WIDTH, DEPTH = 64, 64, 4


def texts():
    """Return inputs and targets for training, and held-out ones."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode(), "uint8").astype("int32")
    view = np.lib.stride_tricks.sliding_window_view(codes, LENGTH + 1)
    border = len(codes) * 9 // 10
    train, test = view[: border - LENGTH], view[border::LENGTH]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:])


def network(seed, constraint=lambda number: None):
    keras.utils.set_random_seed(seed)
    numbers = iter(range(1000))

    def dense(units, activation=None):
        return keras.layers.Dense(
            units, activation, kernel_constraint=constraint(next(numbers))
        )

    inputs = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(256, WIDTH)(inputs)
    places = keras.layers.Embedding(LENGTH, WIDTH)
    x = x + places(keras.ops.arange(LENGTH))[None]
    for _ in range(DEPTH):
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.MultiHeadAttention(
            4, WIDTH // 4, kernel_constraint=constraint(next(numbers))
        )(y, y, use_causal_mask=True)
        x = x + y
        y = keras.layers.LayerNormalization()(x)
        x = x + dense(WIDTH)(dense(4 * WIDTH, "gelu")(y))
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(256)(x))


def train(model, data, optimizer, steps, seed, size=16):
    model.compile(optimizer, LOSS)
    rows = np.random.default_rng(seed).integers(len(data[0]), size=steps * size)
    model.fit(data[0][rows], data[1][rows], size, shuffle=False, verbose=0)
    return model


def loss(model, data):
    """Return nats a character."""
    return model.evaluate(*data, batch_size=64, verbose=0)


def sparse_pretraining(seed):
    """Held-out loss of 150 sparse and 100 dense steps, by what is sparse."""
    data, test = texts()
    found = {}
    for sparsity in (0.0, 0.5, 0.75):
        model = network(
            seed,
            lambda number: ke.constraints.StaticSparsity(
                sparsity, seed=1000 * seed + number
            ),
        )
        ke.constraints.StaticSparsity.start(model)
        train(model, data, keras.optimizers.Adam(2e-3), 150, seed)
        found[f"{sparsity:.0%} sparse, before release"] = loss(model, test)
        ke.constraints.StaticSparsity.release(model)
        train(model, data, keras.optimizers.Adam(1e-3), 100, seed + 100)
        found[f"{sparsity:.0%} sparse, then dense"] = loss(model, test)
    return found


def budget(seed):
    """Bytes a parameter at equal error, uniform against chosen."""
    data, _ = texts()
    model = train(network(seed), data, keras.optimizers.Adam(2e-3), 50, seed)
    rng = np.random.default_rng(seed)
    batches = [
        tuple(x[rng.integers(len(x), size=16)] for x in data) for _ in range(4)
    ]
    variables, gradients = mean_gradients(model, batches)
    found = {}
    for name, settings_of, uniform in (
        ("MicroAdam", micro_adam_settings, 2),
        ("LDAdam", ld_adam_settings, 15),
    ):
        rows = [
            row
            for variable, gradient in zip(variables, gradients)
            if (row := settings_of(variable, gradient, 1)) is not None
        ]
        errors, sizes, settings = zip(*rows)
        parameters = sum(
            gradient.size
            for variable, gradient in zip(variables, gradients)
            if settings_of(variable, gradient, 1) is not None
        )
        at = [min(uniform, len(size) - 1) for size in sizes]
        size = sum(s[i] for s, i in zip(sizes, at))
        error = sum(e[i] for e, i in zip(errors, at))
        low, high = sum(s[0] for s in sizes), size
        for _ in range(30):  # the least budget of the same error
            middle = (low + high) / 2
            chosen = allocate(errors, sizes, middle)
            less = sum(e[i] for e, i in zip(errors, chosen)) <= error
            low, high = (low, middle) if less else (middle, high)
        chosen = allocate(errors, sizes, size)
        best = sum(e[i] for e, i in zip(errors, chosen))
        found[f"{name}: bytes, uniform"] = size / parameters
        found[f"{name}: bytes at equal error"] = high / parameters
        found[f"{name}: error at equal bytes"] = best / error
    return found


TRIALS = {"sparse_pretraining": sparse_pretraining, "budget": budget}
