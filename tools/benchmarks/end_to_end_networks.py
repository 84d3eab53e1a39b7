"""The networks of `end_to_end.py` and their data: text and photographs.

Each is a run of blocks of two residual functions f and g, of one shape. Plain
blocks compute x + f(x), then x + g(x); reversible ones couple two streams of
the same width by the same functions, so that parameters are as many.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

from benchmarks import real_tasks
from benchmarks.blocks import attention_and_feed_forward
from benchmarks.blocks import channel_axis
from benchmarks.blocks import run_of_blocks

CONTEXT = 128  # characters
EDGE = 64  # pixels
NOISE = 0.1  # standard deviation, where colors are 0 to 1
HEAD_WIDTH = 32
LEARNING_RATE = 1e-3


def two_convolutions(width):
    def convolution():
        return keras.Sequential(
            [
                layers.BatchNormalization(axis=channel_axis()),
                layers.ReLU(),
                layers.Conv2D(width, 3, padding="same"),
            ]
        )

    return convolution(), convolution()


def transformer(contender, depth, width):
    """Return a model from characters to logits of the next ones."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = ops.ones_like(tokens) * ops.arange(CONTEXT)
    x = layers.Embedding(128, width)(tokens)
    x = x + layers.Embedding(CONTEXT, width)(places)
    pairs = [
        attention_and_feed_forward(width, HEAD_WIDTH) for _ in range(depth)
    ]
    x = layers.LayerNormalization()(run_of_blocks(contender, pairs, x))
    return keras.Model(tokens, layers.Dense(128)(x))


def convolutional(contender, depth, width):
    """Return a model from noisy patches to clean ones."""
    shape = [EDGE, EDGE]
    shape.insert(0 if channel_axis() == 1 else 2, 3)
    noisy = keras.Input(shape)
    x = layers.Conv2D(width, 3, padding="same")(noisy)
    pairs = [two_convolutions(width) for _ in range(depth)]
    x = layers.BatchNormalization(axis=channel_axis())(
        run_of_blocks(contender, pairs, x)
    )
    x = layers.Conv2D(3, 3, padding="same")(layers.ReLU()(x))
    return keras.Model(noisy, noisy + x)


def text_batches(batch_size):
    """Yield characters and those that follow them."""
    (x, y), _ = real_tasks.text(CONTEXT)
    rng = np.random.default_rng(0)
    while True:
        rows = rng.integers(len(x), size=batch_size)
        yield x[rows], y[rows]


def photograph_batches(batch_size):
    """Yield patches of photographs, with noise and without."""
    from sklearn.datasets import load_sample_images

    photographs = [
        (image / 255).astype("float32") for image in load_sample_images().images
    ]
    rng = np.random.default_rng(0)

    def patch():
        image = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(n - EDGE) for n in image.shape[:2])
        return image[top : top + EDGE, left : left + EDGE]

    while True:
        y = np.stack([patch() for _ in range(batch_size)])
        y = np.moveaxis(y, -1, 1) if channel_axis() == 1 else y
        x = y + rng.normal(0, NOISE, y.shape)
        yield x.astype("float32"), y


# Function that builds the model, batches, and loss.
NETWORKS = {
    "transformer": (
        transformer,
        text_batches,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ),
    "convolutional": (convolutional, photograph_batches, "mse"),
}
