"""
Title: Autoencoders whose decoder is the inverted encoder
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: InvAuto beside untied, tied and variational autoencoders.
Accelerator: None
"""

"""
## What this guide does

It trains six autoencoders on handwritten digits and measures, on test
images, how well they reconstruct, how near the product D E of the weights of
decoder and encoder is to the identity, and how many parameters they have. It
prints a table and draws `invertible_autoencoder.png`.

```shell
KERAS_BACKEND=jax python guides/invertible_autoencoder.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os
import warnings

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
## The data

The digits ship with scikit-learn: 1,797 images of 8 x 8 pixels, here as
vectors of 64 values from 0 to 1. A fifth is for the test. To choose settings,
`--split validation` leaves it aside and scores on a fifth of the rest.
"""


def load(split):
    """Return the images for training and those of `split`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    settings = {"test_size": 0.2, "random_state": 0}
    x, x_test, y, _ = train_test_split(x, y, stratify=y, **settings)
    if split == "test":
        return x, x_test
    return train_test_split(x, stratify=y, **settings)


"""
## InvAuto

Dense layers and activations that can be inverted: nothing else is needed. By
default the kernels start orthonormal; from `start="glorot_uniform"`, as other
kernels, orthonormality has to be learned. The slopes are closer to 1 than the
defaults: the more an activation bends, the longer a random start takes.

The loss on images says nothing of pixels that are black in all of them, as
in the corners: a random start leaves what the kernels do there as it was.
`Orthonormal` sees to all directions.
"""


def inv_auto(widths, start, factor):
    regularizer = None
    if factor:
        regularizer = keras_efficient.regularizers.Orthonormal(factor)
    stack = []
    for units in widths:
        stack += [
            keras_efficient.layers.InvertibleDense(
                units,
                kernel_initializer=start,
                kernel_regularizer=regularizer,
            ),
            keras_efficient.layers.InvertibleLeakyReLU(2**0.5, 0.5**0.5),
        ]
    return keras_efficient.models.InvertibleAutoencoder(stack[:-1])


"""
## The others

The untied autoencoder has a decoder of its own. The tied one has the
transposed kernels, but biases of its own, and activations that nobody
inverts. The variational one also learns the variance of each value of the
code.
"""


class Transposed(layers.Layer):
    """A dense layer with the kernel of another, transposed."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def build(self, input_shape):
        size = self.dense.kernel.shape[0]
        self.bias = self.add_weight(shape=(size,), initializer="zeros")

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.dense.kernel)) + self.bias


class Sampling(layers.Layer):
    """Draw the code, and add its divergence from a normal distribution."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.seed = keras.random.SeedGenerator()

    def call(self, mean, log_variance, training=False):
        divergence = ops.exp(log_variance) + mean**2 - 1 - log_variance
        total = ops.sum(divergence, axis=-1) / 2
        self.add_loss(self.weight * ops.mean(total))
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), seed=self.seed)
        return mean + ops.exp(log_variance / 2) * noise


def twin(widths, kind, size):
    """Return a model, and a function for the kernels in their order."""
    inputs = x = keras.Input((size,))
    encoder = [layers.Dense(units) for units in widths]
    for dense in encoder[:-1]:
        x = layers.LeakyReLU(0.2)(dense(x))
    code = encoder[-1](x)
    if kind == "tied":
        decoder = [Transposed(dense) for dense in reversed(encoder)]
    else:
        sizes = [*reversed(widths[:-1]), size]
        decoder = [layers.Dense(units) for units in sizes]
    if kind == "variational":
        # A variance of 0.05 a pixel, in units of the mean squared error.
        sampling = Sampling(2 * 0.05 / size)
        code = sampling(code, layers.Dense(widths[-1])(x))
    x = code
    for dense in decoder[:-1]:
        x = layers.LeakyReLU(0.2)(dense(x))
    model = keras.Model(inputs, decoder[-1](x))

    def kernels():
        values = [ops.convert_to_numpy(dense.kernel) for dense in encoder]
        if kind == "tied":
            return values + [kernel.T for kernel in reversed(values)]
        return values + [ops.convert_to_numpy(d.kernel) for d in decoder]

    return model, kernels


# InvAuto with the start of its kernels and the factor of its regularizer, and
# its twins.
MODELS = {
    "InvAuto": ("orthogonal", None),
    "InvAuto, random start": ("glorot_uniform", None),
    "InvAuto, regularized": ("glorot_uniform", 0.1),
    "untied": None,
    "tied": None,
    "variational": None,
}


"""
## One run
"""


def train(name, widths, options, data, seed):
    keras.utils.set_random_seed(seed)
    x, x_test = data
    start = MODELS[name]
    if start:
        model = inv_auto(widths, *start)
    else:
        model, kernels = twin(widths, name, x.shape[1])
    steps = options.epochs * -(-len(x) // options.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, steps
    )
    # Where a model is exact its gradients are rounding errors. Adam would make
    # full steps of them but for an epsilon above their size.
    optimizer = keras.optimizers.Adam(schedule, epsilon=1e-5)
    model.compile(optimizer, "mse")
    model.fit(
        x, x, batch_size=options.batch_size, epochs=options.epochs, verbose=0
    )
    again = model.predict(x_test, verbose=0)
    units = np.eye(x.shape[1], dtype="float32")
    if start:
        de = ops.convert_to_numpy(model.linear(units))
    else:
        de = np.linalg.multi_dot(kernels())
    result = {
        "parameters": model.count_params(),
        "mse": float(np.mean((again - x_test) ** 2)),
        "images": again[:8],
        "de": de,
    }
    for part in ("diagonal", "off_diagonal"):
        metric = keras_efficient.metrics.OrthonormalityError(part)
        result[part] = float(metric(units, de))
    print(
        f"{name}, seed {seed}: error {result['mse']:.2e}, D E - I "
        f"{result['diagonal']:.2e} and {result['off_diagonal']:.2e}"
    )
    return result


"""
## What came out
"""


def show(results, options):
    title = (
        f"{options.widths}, {options.split}, {keras.config.backend()}, "
        f"mean of {options.seeds} seed(s)"
    )
    table = Table(title=title)
    for column in (
        "",
        "parameters",
        "error",
        "D E - I, diagonal",
        "off the diagonal",
    ):
        table.add_column(column)
    for name, runs in results.items():
        values = [
            np.mean([run[key] for run in runs])
            for key in ("mse", "diagonal", "off_diagonal")
        ]
        table.add_row(
            name,
            f"{runs[0]['parameters']:,}",
            *[f"{value:.2e}" for value in values],
        )
    Console().print(table)


def draw(results, x_test, path):
    """Digits, their reconstructions, and D E of each model."""
    figure, axes = plt.subplots(
        len(results) + 1, 9, figsize=(9, 7), layout="constrained"
    )
    rows = [("test images", x_test[:8], None)]
    rows += [(name, r[0]["images"], r[0]["de"]) for name, r in results.items()]
    for row, (name, images, de) in zip(axes, rows):
        for ax, image in zip(row, images):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        if de is not None:
            row[8].imshow(de, cmap="RdBu", vmin=-1, vmax=1)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax in row:
            ax.set(xticks=[], yticks=[])
    axes[0, 8].set_title("D E")
    axes[0, 8].set_axis_off()
    figure.savefig(path, dpi=120)
    print(f"Wrote {path}")


"""
## Run it

With 64 values in each layer nothing need be lost, and D E can be the
identity. `--widths 48-32-16` asks for a code of 16 values: of orthonormal
weights D E is then a projection, with a trace of 16, and the error of its
diagonal is at least 0.56.
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", default="64-64-64", help="of the encoder")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test"
    )
    parser.add_argument("--output", default="invertible_autoencoder.png")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message="Layer .* maps")
    widths = [int(n) for n in options.widths.split("-")]
    data = load(options.split)
    results = {name: [] for name in MODELS}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(train(name, widths, options, data, seed))
    show(results, options)
    draw(results, data[1], options.output)


if __name__ == "__main__":
    main()
