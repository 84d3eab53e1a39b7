"""Tasks of binary weights and of reversed gradients."""

import keras
import numpy as np
from keras import layers as L

from benchmarks.small_layers_training import spread
from benchmarks.small_layers_training import train
from keras_efficient import layers


def binary(seeds, epochs=8):
    """Digits; all layers but the first and the last are binary."""
    steps = epochs * 43
    kinds = {
        "32 bits": lambda layer: layer,
        "ste": lambda layer: layers.Binarized(layer, "ste"),
        "reste": lambda layer: layers.Binarized(layer, "reste", steps=steps),
        "biper": lambda layer: layers.Binarized(
            layer, "biper", steps=steps // 2
        ),
        "biper, binary at once": lambda layer: layers.Binarized(
            layer, "biper", steps=1
        ),
    }
    yield "", "accuracy, %"
    for name, wrap in kinds.items():
        found = [
            train(lambda: network(wrap), seed, epochs)[1]
            for seed in range(seeds)
        ]
        yield name, spread(found)


def network(wrap, width=16):
    def conv(filters, wrap):
        layer = L.Conv2D(filters, 3, padding="same", use_bias=False)
        return [wrap(layer), L.BatchNormalization(momentum=0.9), L.ReLU()]

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *conv(width, lambda layer: layer),
            *conv(2 * width, wrap),
            L.MaxPooling2D(),
            *conv(2 * width, wrap),
            L.GlobalAveragePooling2D(),
            L.Dense(10),
        ]
    )


def domains(seeds, steps=600):
    """Two classes; the second domain is shifted, and has no labels."""
    yield "", "source, %", "target, %", "domain told apart, %"
    for factor in (0.0, 0.3, 1.0):
        found = [two_domains(factor, seed, steps) for seed in range(seeds)]
        name = f"reversal, factor {factor}" if factor else "without"
        yield name, *map(spread, zip(*found))


def two_domains(factor, seed, steps):
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    n = 1000
    label = rng.integers(2, size=2 * n)
    domain = np.repeat([0, 1], n)
    x = rng.normal(size=(2 * n, 2)) * 0.7
    # The class is in one direction, the domain in another that helps, too.
    x[:, 0] += 2 * label - 1
    x[:, 1] += np.where(domain == 0, 1.6 * (2 * label - 1), 3.0)
    x = x.astype("float32")
    inputs = keras.Input((2,))
    features = L.Dense(16, "relu")(inputs)
    features = L.Dense(8, "relu")(features)
    turned = layers.GradientReversal(factor, ramp_steps=steps)(features)
    turned = L.Dense(16, "relu")(turned)
    model = keras.Model(inputs, [L.Dense(1)(features), L.Dense(1)(turned)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), [loss, loss])
    known = (domain == 0).astype("float32")
    batch = 64
    model.fit(
        x,
        [label[:, None], domain[:, None]],
        sample_weight=[known, np.ones(2 * n)],
        epochs=max(1, steps * batch // (2 * n)),
        batch_size=batch,
        verbose=0,
    )
    logits, of_domain = model.predict(x, verbose=0)
    right = (logits[:, 0] > 0) == label
    told = (of_domain[:, 0] > 0) == domain
    return [
        100 * np.mean(values)
        for values in (right[domain == 0], right[domain == 1], told)
    ]
