import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_efficient.optimizers import Adam8bit


def final_loss(optimizer, seed):
    """Train a network on handwritten digits; return its loss on the rest."""
    keras.utils.set_random_seed(seed)
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(96, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.fit(x[:1400], y[:1400], batch_size=64, epochs=8, verbose=0)
    return model.evaluate(x[1400:], y[1400:], verbose=0)


@pytest.mark.slow
def test_final_loss_is_that_of_adam():
    """Within the spread of five seeds, at the same learning rate."""
    seeds = range(5)
    adam = [final_loss(keras.optimizers.Adam(2e-3), s) for s in seeds]
    # kernels of 6144, 6144 and 640 entries are compressed
    ours = [final_loss(Adam8bit(2e-3, min_size=640), s) for s in seeds]
    assert abs(np.mean(ours) - np.mean(adam)) < np.std(adam)
    assert min(adam) - np.std(adam) < np.mean(ours) < max(adam)
