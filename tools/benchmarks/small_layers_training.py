"""Training of small models on digits, as tasks of small layers need it."""

import functools

import keras
import numpy as np

from benchmarks import real_tasks


@functools.cache
def digits():
    return real_tasks.digits()


def train(build, seed, epochs, batch_size=32, rate=1e-3, data=None):
    """Train a classifier; return it and its accuracy on other digits, %."""
    keras.utils.set_random_seed(seed)
    (x, y), test = data or digits()
    model = build()
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=0)
    return model, accuracy(model, *test)


def accuracy(model, x, y, batch_size=64):
    logits = model.predict(x, verbose=0, batch_size=batch_size)
    return 100 * np.mean(logits.argmax(-1) == y)


def spread(values, digits=1):
    """Mean and standard deviation, as text."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"
