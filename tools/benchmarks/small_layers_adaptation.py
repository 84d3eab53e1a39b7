"""Tasks of layers that adapt, retrieve and mix."""

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


def adapters(seeds):
    """Digits 0 to 4, then 5 to 9 by adapters of the hidden layer."""
    kinds = {
        "head alone": lambda dense: frozen(dense),
        "parallel, rank 4": lambda dense: layers.Hydra(
            dense, 4, branches=("parallel",)
        ),
        "sequential, rank 4": lambda dense: layers.Hydra(
            dense, 4, branches=("sequential",)
        ),
        "both, rank 2": lambda dense: layers.Hydra(dense, 2),
        "all of the layer": lambda dense: dense,
    }
    (x, y), (x_test, y_test) = digits()
    low, high = y < 5, y > 4
    late = y_test > 4
    yield "", "accuracy on 5 to 9, %", "trained in the hidden layer"
    found = {name: [] for name in kinds}
    trained = {}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        dense = L.Dense(64, name="hidden")
        first = classifier(dense)
        fit(first, x[low], y[low])
        weights = dense.get_weights()
        for name, wrap in kinds.items():
            keras.utils.set_random_seed(seed)
            dense = L.Dense(64)
            dense.build((None, 64))
            dense.set_weights(weights)
            layer = wrap(dense)
            model = classifier(layer)
            fit(model, x[high], y[high])
            found[name].append(accuracy(model, x_test[late], y_test[late]))
            trained[name] = sum(
                int(np.prod(v.shape)) for v in layer.trainable_variables
            )
    for name, values in found.items():
        yield name, spread(values), trained[name]


def frozen(dense):
    dense.trainable = False
    return dense


def classifier(hidden):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Flatten(),
            hidden,
            L.ReLU(),
            L.Dense(10),
        ]
    )


def fit(model, x, y, epochs=15, rate=3e-3, shuffle=True):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, epochs=epochs, shuffle=shuffle, verbose=0)


def bottleneck(seeds):
    """Digits two at a time, five tasks; accuracy on all in the end."""
    (x, y), (x_test, y_test) = digits()
    x, x_test = (a.reshape(len(a), 64) for a in (x, x_test))
    yield "", "accuracy on all ten, %", "on the first two, %"
    for name in ("Dense", "KeyValueBottleneck"):
        found = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            head = L.Dense(10)
            if name != "Dense":
                head = layers.KeyValueBottleneck(32, 64, 10, 16, seed=seed)
                head.adapt(x, epochs=5)
            model = keras.Sequential([keras.Input((64,)), head])
            rate = 1e-2 if name == "Dense" else 0.3
            for task in range(5):
                seen = y // 2 == task
                fit(model, x[seen], y[seen], epochs=5, rate=rate)
            first = y_test < 2
            found.append(
                (
                    accuracy(model, x_test, y_test),
                    accuracy(model, x_test[first], y_test[first]),
                )
            )
        yield name, *map(spread, zip(*found))


def retrieval(seeds):
    """Error of retrieving one of 1,000 patterns, by beta and steps."""
    yield "beta", *[f"{steps} step(s)" for steps in (1, 2, 4)]
    for beta in (0.05, 0.2, 0.5, 1.0):
        row = []
        for steps in (1, 2, 4):
            errors = []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                stored = rng.choice([-1.0, 1.0], (1, 1000, 32))
                noisy = stored[:, :100] + rng.normal(size=(1, 100, 32))
                layer = layers.Hopfield(1, 32, beta, steps)
                layer.build(noisy.shape, stored.shape)
                for dense in (
                    *(layer.query, layer.key),
                    *(layer.value, layer.projection),
                ):
                    dense.kernel.assign(np.eye(32))
                right = layer.stored_norm(stored[:, :100].astype("float32"))
                y = layer(
                    noisy.astype("float32"), stored=stored.astype("float32")
                )
                gap = ops.convert_to_numpy(y) - ops.convert_to_numpy(right)
                errors.append(np.mean(gap**2))
            row.append(spread(errors, 3))
        yield beta, *row


def random_features(seeds):
    """Ridge regression on features of digits; rank of 1,000 of them."""
    (x, y), (x_test, y_test) = digits()
    x, x_test = (a.reshape(len(a), 64) for a in (x, x_test))
    targets = np.eye(10)[y]
    yield "", *[f"error at {n}, %" for n in (100, 300, 1000)], "rank at 300"
    kinds = {
        "random Maclaurin": {"expansion": 1},
        "CRAFTMaps, Hadamard": {},
        "CRAFTMaps, Gaussian": {"structured": False},
    }
    for name, options in kinds.items():
        errors, ranks = {100: [], 300: [], 1000: []}, []
        for seed in range(seeds):
            for units, found in errors.items():
                layer = layers.CompactRandomFeatures(
                    units, degree=7, seed=seed, **options
                )
                z, z_test = (
                    ops.convert_to_numpy(layer(a)).astype("float64")
                    for a in (x, x_test)
                )
                gram = z.T @ z
                ridge = 1e-4 * np.trace(gram) / units * np.eye(units)
                weights = np.linalg.solve(gram + ridge, z.T @ targets)
                wrong = (z_test @ weights).argmax(-1) != y_test
                found.append(100 * np.mean(wrong))
                if units == 300:
                    ranks.append(np.linalg.matrix_rank(z[:1000], 1e-4))
        yield name, *map(spread, errors.values()), spread(ranks)


def pooling(seeds):
    """ConvNeXt blocks with depthwise convolutions or maxima."""
    x = digits()[0][0][:32]
    yield "", "parameters", "bytes kept", "accuracy, %"
    for mixer in ("depthwise", "max"):

        def build():
            blocks = [
                layers.ConvNeXtBlock(3, layer_scale=0.1, mixer=mixer)
                for _ in range(3)
            ]
            return keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    L.Conv2D(32, 2, 2),
                    *blocks,
                    L.GlobalAveragePooling2D(),
                    L.Dense(10),
                ]
            )

        model = build()
        found = [train(build, seed, 10)[1] for seed in range(seeds)]
        kept = utils.saved_activation_bytes(model, x)
        yield mixer, model.count_params(), f"{kept:,}", spread(found)


def hourglass(seeds):
    """Noise taken from digits: wide skips or wide insides."""
    (x, _), (x_test, _) = digits()
    x, x_test = (a.reshape(len(a), 64) for a in (x, x_test))
    rng = np.random.default_rng(0)
    noisy, noisy_test = (
        (a + 0.5 * rng.normal(size=a.shape)).astype("float32")
        for a in (x, x_test)
    )
    kinds = {
        "narrow skip 64, inside 256": lambda run: (64, 256, 4, run),
        "wide skip 512, inside 32": lambda run: (512, 32, 4, run),
    }
    yield "", "parameters", "error", "bytes kept", "of a reversible run"
    for name, kind in kinds.items():
        errors = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            model = denoiser(*kind(None))
            model.compile(keras.optimizers.Adam(1e-3), "mse")
            model.fit(noisy, x, epochs=10, batch_size=32, verbose=0)
            errors.append(model.evaluate(noisy_test, x_test, verbose=0))
        kept = [
            utils.saved_activation_bytes(denoiser(*kind(run)), noisy[:64])
            for run in (False, True)
        ]
        yield (
            name,
            sum(int(np.prod(v.shape)) for v in model.trainable_variables),
            spread([1000 * e for e in errors], 2) + " / 1000",
            *[f"{k:,}" for k in kept],
        )


def denoiser(width, inside, depth, reversible):
    """With `None`, blocks with a skip; else a run of couplings."""
    inputs = keras.Input((64,))
    x = inputs
    if width > 64:
        x = L.Dense(width, use_bias=False, trainable=False)(x)
    if reversible is None:
        for _ in range(depth):
            x = residual(inside, True)(x)
    else:
        run = [
            layers.AdditiveCoupling(residual(inside, False))
            for _ in range(depth)
        ]
        x = layers.ReversibleSequence(run, reversible)([x, x])[0]
    return keras.Model(inputs, L.Dense(64)(x))


def residual(inside, skip):
    if inside < 64:
        return layers.HourglassBlock(inside, skip=skip)
    inputs = keras.Input((64,))
    y = L.LayerNormalization(epsilon=1e-5)(inputs)
    y = L.Dense(64)(L.Dense(inside, "gelu")(y))
    return keras.Model(inputs, inputs + y if skip else y)


def settings(seeds):
    """Slope of the outputs' variance along the size of the settings."""
    x = np.ones((16, 8), "float32")
    h = np.repeat(np.linspace(0, 1, 16, dtype="float32")[:, None], 4, 1)
    yield "encoding", "slope over the mean"
    for encoding in ("cos_sin", "none"):
        found = []
        for seed in range(5 * seeds):
            keras.utils.set_random_seed(seed)
            dense = L.Dense(256, kernel_initializer="zeros")
            layer = layers.HyperNetwork(dense, (1024,), encoding)
            variance = ops.convert_to_numpy(layer([x, h])).var(-1)
            slope = np.polyfit(h[:, 0], variance, 1)[0]
            found.append(slope / variance.mean())
        yield encoding, spread(found, 3)
