"""
Title: Normalizing flows whose memory does not grow with depth
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Densities of two moons and of handwritten digits, and samples.
Accelerator: None
"""

"""
## What this guide does

It trains two normalizing flows by maximum likelihood, one on points of two
half circles and one on handwritten digits, draws samples of both, and prints
how many bits they need for test data, beside a Gaussian that was fitted to the
same data, and how many bytes a training step keeps. It draws
`normalizing_flow.png`.

```shell
KERAS_BACKEND=jax python guides/normalizing_flow.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import math
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
from keras import layers
from keras import ops
from rich.console import Console
from rich.table import Table

import keras_efficient

if "MPLBACKEND" not in os.environ:  # a notebook sets it
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

"""
## A flow is a run

An invertible function b turns data x into z = b(x), and a normal density of z
into one of x:

```
log p(x) = log N(b(x); 0, I) + log |det J_b(x)|
```

`return_log_det=True` gives the second term. The sum goes along as one more
stream of the run, so that a training step keeps the output of the run and a
number an example, however many blocks there are. Samples are
`run.inverse(z)`, for normal z.

Affine couplings scale one half of the numbers by functions of the other half.
An orthogonal matrix that is learned mixes the halves in between.
"""


def function(inputs, outputs, width, dropout):
    """Return a network whose first values are zero: couplings start as 1."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(width, "gelu"),
            layers.Dropout(dropout),
            layers.Dense(width, "gelu"),
            layers.Dropout(dropout),
            layers.Dense(2 * outputs, kernel_initializer="zeros"),
        ]
    )


def blocks_of(size, depth, width, dropout):
    first, second = size // 2, size - size // 2
    blocks = []
    for _ in range(depth):
        mixing = keras_efficient.layers.OrthogonalMixing(
            kernel_initializer="random_normal"
        )
        coupling = keras_efficient.layers.AffineCoupling(
            function(second, first, width, dropout),
            function(first, second, width, dropout),
            clamp=2.0,
        )
        blocks += [mixing, coupling]
    return blocks


class Flow(keras.Model):
    """Tells the logarithm of the density of its inputs."""

    def __init__(self, size, depth, width, dropout=0.0, reversible=True):
        super().__init__()
        self.size = size
        self.run = keras_efficient.layers.ReversibleSequence(
            blocks_of(size, depth, width, dropout), reversible
        )

    def call(self, x, training=None):
        z, log_det = self.run(x, training=training, return_log_det=True)
        square = ops.sum(z * z, axis=-1)
        return log_det - 0.5 * (square + self.size * math.log(2 * math.pi))

    def sample(self, number, seed=0):
        z = keras.random.normal((number, self.size), seed=seed)
        return ops.convert_to_numpy(self.run.inverse(z))


class Batches(keras.utils.PyDataset):
    """Rows in a new order each epoch, each time as `draw` makes them."""

    def __init__(self, rows, draw, batch_size=128):
        super().__init__()
        self.rows, self.draw, self.batch_size = rows, draw, batch_size
        self.rng = np.random.default_rng(0)
        self.on_epoch_end()

    def __len__(self):
        return len(self.rows) // self.batch_size

    def __getitem__(self, i):
        taken = self.order[i * self.batch_size :][: self.batch_size]
        x = self.draw(self.rows[taken], self.rng)
        # There are no targets: the mean of the outputs is the likelihood.
        return x, np.zeros(len(x), "float32")

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.rows))


def train(flow, batches, epochs, learning_rate, held_back=None):
    """Maximize the likelihood; keep the epoch that is best on `held_back`."""
    steps = epochs * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    flow.compile(
        keras.optimizers.Adam(schedule), lambda _, log_p: -ops.mean(log_p)
    )
    callbacks = []
    if held_back is not None:
        held_back = held_back, np.zeros(len(held_back), "float32")
        callbacks = [
            keras.callbacks.EarlyStopping(
                patience=epochs, restore_best_weights=True
            )
        ]
    flow.fit(
        batches,
        validation_data=held_back,
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
    )


"""
## The data

Both come from scikit-learn. The digits have 64 pixels of 17 levels of gray.
Uniform noise makes continuous numbers of them, and a logit takes these from
(0, 1) to all numbers; its determinant is added to the likelihood, which is
then one of the pixels: at least as many bits as a code of the images needs.
The noise is drawn anew each time an image is seen.
"""

LEVELS, MARGIN = 17, 0.01


def moons(number, seed):
    from sklearn.datasets import make_moons

    return make_moons(number, noise=0.06, random_state=seed)[0].astype(
        "float32"
    )


def digits(seed=0):
    """Return training and test images, as integers from 0 to 16."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return train_test_split(x, test_size=0.2, random_state=seed, stratify=y)


def to_numbers(pixels, rng):
    """Return what the flow sees, and the logarithm of the determinant."""
    x = (pixels + rng.uniform(size=pixels.shape)) / LEVELS
    p = MARGIN + (1 - 2 * MARGIN) * x
    log_det = np.log((1 - 2 * MARGIN) / (p * (1 - p)) / LEVELS)
    return np.log(p / (1 - p)).astype("float32"), log_det.sum(-1)


def to_pixels(numbers):
    p = 1 / (1 + np.exp(-numbers))
    return (p - MARGIN) / (1 - 2 * MARGIN)


"""
## Bits

The negative logarithm of a likelihood, to base 2 and divided by the number of
values, counts bits a value. What any fair code needs for pixels of 17 levels is
log2(17) = 4.09. The Gaussian has the mean and the covariance of the training
data (for the digits a little of the identity is added, for the pixels that are
always black). The flow of the digits begins where the Gaussian ends, with
whitened numbers. 1,437 images are few: half of what is in its networks is
dropped, a tenth of the images is held back, and the epoch that is best on these
is taken.
"""


def bits(log_p, size):
    return float(-np.mean(log_p) / math.log(2) / size)


class Gaussian:
    """A normal density with the mean and the covariance of data."""

    def __init__(self, x, ridge=0.0):
        self.mean, self.size = x.mean(0), x.shape[1]
        covariance = np.cov(x.T) + ridge * np.eye(self.size)
        self.factor = np.linalg.cholesky(covariance)
        self.log_det = -np.log(np.diag(self.factor)).sum()

    def whiten(self, x):
        return np.linalg.solve(self.factor, (x - self.mean).T).T.astype(x.dtype)

    def color(self, z):
        return self.mean + z @ self.factor.T

    def log_p(self, x):
        square = (self.whiten(x) ** 2).sum(-1)
        constant = self.size * math.log(2 * math.pi)
        return self.log_det - 0.5 * (square + constant)


def on_moons(options):
    x, test = moons(2000, 0), moons(2000, 1)
    flow = Flow(2, options.depth, 64)
    train(flow, Batches(x, lambda x, rng: x), options.epochs // 2, 5e-3)
    scores = {
        "flow": bits(flow.predict(test, verbose=0), 2),
        "Gaussian": bits(Gaussian(x).log_p(test), 2),
    }
    return scores, flow.sample(1000), test


def on_digits(options):
    rng = np.random.default_rng(0)
    pixels, test_pixels = digits()
    tenth = len(pixels) // 10  # they are in random order
    held_back, pixels = pixels[:tenth], pixels[tenth:]
    x, _ = to_numbers(np.repeat(pixels, 8, axis=0), rng)
    test, log_det = to_numbers(test_pixels, rng)
    normal = Gaussian(x, 0.05)
    flow = Flow(64, options.depth, 64, dropout=0.5)

    def draw(pixels, rng):
        return normal.whiten(to_numbers(pixels, rng)[0])

    held_back = draw(np.repeat(held_back, 8, axis=0), rng)
    train(flow, Batches(pixels, draw), options.epochs, 1e-3, held_back)
    log_p = flow.predict(normal.whiten(test), verbose=0) + normal.log_det
    scores = {
        "flow": bits(log_p + log_det, 64),
        "Gaussian": bits(normal.log_p(test) + log_det, 64),
    }
    samples = to_pixels(normal.color(flow.sample(32)))
    return scores, samples, test_pixels[:32] / 16


"""
## What came out
"""


def kept(depth, reversible):
    """Bytes that a training step on 256 digits keeps for its backward pass."""
    flow = Flow(64, depth, 64, reversible=reversible)
    x = np.zeros((256, 64), "float32")
    return keras_efficient.utils.saved_activation_bytes(flow, x)


def show(results, options):
    title = f"bits a value, test data, {keras.config.backend()}"
    table = Table("", "flow", "Gaussian", title=title)
    for name, (scores, *_) in results.items():
        table.add_row(name, *[f"{scores[k]:.2f}" for k in scores])
    Console().print(table)
    depths = options.depth, 4 * options.depth
    title = "kilobytes kept by a step on 256 digits"
    table = Table("blocks", *map(str, depths), title=title)
    for name, reversible in (("reversible", True), ("plain", False)):
        sizes = [f"{kept(n, reversible) / 1e3:,.0f}" for n in depths]
        table.add_row(name, *sizes)
    Console().print(table)


def draw(results, path):
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    _, samples, test = results["two moons"]
    for ax, points, name in zip(axes[0], (test, samples), ("data", "samples")):
        ax.scatter(*points[:1000].T, s=3)
        ax.set(title=name, xlim=(-1.6, 2.6), ylim=(-1.2, 1.6), aspect="equal")
    _, samples, test = results["digits"]
    for ax, images in zip(axes[1], (test, samples)):
        rows = images.reshape(4, 8, 8, 8).transpose(0, 2, 1, 3).reshape(32, 64)
        ax.imshow(rows, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    print(f"Wrote {path}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=8, help="couplings")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--output", default="normalizing_flow.png")
    options = parser.parse_args()

    results = {}
    for name, run in (("two moons", on_moons), ("digits", on_digits)):
        keras.utils.set_random_seed(0)
        results[name] = run(options)
    show(results, options)
    draw(results, options.output)


if __name__ == "__main__":
    main()
