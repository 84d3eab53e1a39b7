"""Tasks of layers for data that come in order, or look different."""

import keras
import numpy as np
from keras import layers as L
from keras import ops

from benchmarks.small_layers_training import accuracy
from benchmarks.small_layers_training import digits
from benchmarks.small_layers_training import spread
from benchmarks.small_layers_training import train
from keras_efficient import layers
from keras_efficient import utils

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NORMS = {
    "BatchNormalization": lambda y, task: L.BatchNormalization(momentum=0.9)(y),
    "GroupNormalization": lambda y, task: L.GroupNormalization(8)(y),
    "AdaB2N": lambda y, task: layers.AdaB2N(5)([y, task]),
    "AdaB2N, factor 0": lambda y, task: layers.AdaB2N(5, factor=0)([y, task]),
}


def replay(seeds, kept=20):
    """Digits two at a time, ten new and ten old ones a step."""
    (x, y), (x_test, y_test) = digits()
    yield "", "accuracy on all ten, %", "on the first two, %"
    for name, norm in NORMS.items():
        found = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            rng = np.random.default_rng(seed)
            model = classifier(norm)
            model.compile(keras.optimizers.Adam(3e-3), CROSS_ENTROPY)
            memory = np.zeros(0, int)
            for task in range(5):
                new = rng.permutation(np.flatnonzero(y // 2 == task))
                rows = new.reshape(-1, 1)[: len(new) // 10 * 10]
                rows = rows.reshape(-1, 10)
                if len(memory):
                    old = rng.choice(memory, rows.shape)
                    rows = np.concatenate([rows, old], 1)
                size, rows = rows.shape[1], rows.ravel()
                model.fit(
                    [x[rows], y[rows] // 2],
                    y[rows],
                    batch_size=size,
                    shuffle=False,
                    verbose=0,
                )
                memory = np.concatenate([memory, new[:kept]])
            logits = model.predict([x_test, y_test // 2], verbose=0)
            right = logits.argmax(-1) == y_test
            found.append((100 * right.mean(), 100 * right[y_test < 2].mean()))
        yield name, *map(spread, zip(*found))


def classifier(norm):
    x, task = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    y = x
    for filters in (16, 32):
        y = L.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = L.MaxPooling2D()(L.ReLU()(norm(y, task)))
    return keras.Model([x, task], L.Dense(10)(L.Flatten()(y)))


def meta_blocks(seeds):
    """Brighter digits in batches of 64, adapted to as they come."""
    _, (x, y) = digits()
    other = (0.5 * x + 0.5).astype("float32")
    found = {"source": [], "statistics of the batch": [], "EcoTTA": []}
    for seed in range(seeds):
        parts = [part(8), part(16)]
        head = [L.GlobalAveragePooling2D(), L.Dense(10)]
        source, _ = train(lambda: joined(parts + head), seed, 6)
        found["source"].append(accuracy(source, other, y))
        whole = joined(
            [layer for part in parts for layer in part.layers] + head
        )
        batch = utils.adapt_batch_norm(whole, target_weight=1.0)
        found["statistics of the batch"].append(accuracy(batch, other, y))
        head[-1].trainable = False
        blocks = [layers.EcoTTABlock(part) for part in parts]
        model, _ = train(lambda: joined(blocks + head), seed, 3)
        found["EcoTTA"].append(adapted(model, other, y))
    yield "", "accuracy, %"
    for name, values in found.items():
        yield name, spread(values)


def part(filters):
    return keras.Sequential(
        [
            L.Conv2D(filters, 3, padding="same", use_bias=False),
            L.BatchNormalization(momentum=0.9),
            L.ReLU(),
            L.MaxPooling2D(),
        ]
    )


def joined(parts):
    return keras.Sequential([keras.Input((8, 8, 1)), *parts])


def adapted(model, x, y):
    """Accuracy while each batch lowers the entropy of what is said of it."""

    def entropy(_, logits):
        log_p = ops.log_softmax(logits)
        return -ops.sum(ops.exp(log_p) * log_p, -1)

    model.compile(keras.optimizers.Adam(1e-3), entropy)
    right = []
    for start in range(0, len(x), 64):
        some = slice(start, start + 64)
        model.train_on_batch(x[some], y[some])
        logits = ops.convert_to_numpy(model(x[some], training=True))
        right.append(logits.argmax(-1) == y[some])
    return 100 * np.concatenate(right).mean()
