"""Tasks of normalization layers."""

import keras
import numpy as np
from keras import layers as L

from benchmarks import real_tasks
from benchmarks.small_layers_training import accuracy
from benchmarks.small_layers_training import digits
from benchmarks.small_layers_training import spread
from benchmarks.small_layers_training import train
from keras_efficient import layers
from keras_efficient import models
from keras_efficient import utils

NORMS = {
    "BatchNormalization, ReLU": lambda: [
        L.BatchNormalization(momentum=0.9),
        L.ReLU(),
    ],
    "GroupNormalization, ReLU": lambda: [L.GroupNormalization(8), L.ReLU()],
    "GroupNormalization, SiLU": lambda: [
        L.GroupNormalization(8),
        L.Activation("silu"),
    ],
    "EvoNorm S0": lambda: [layers.EvoNorm(groups=8)],
    "EvoNorm S0 in Recompute": lambda: [
        layers.Recompute(layers.EvoNorm(groups=8))
    ],
    "EvoNorm B0": lambda: [layers.EvoNorm("B0")],
}


def network(norm, width=8):
    def conv(filters):
        conv = L.Conv2D(filters, 3, padding="same", use_bias=False)
        return [conv, *norm()]

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *conv(width),
            *conv(2 * width),
            L.MaxPooling2D(),
            *conv(2 * width),
            L.GlobalAveragePooling2D(),
            L.Dense(10),
        ]
    )


def norms(seeds):
    x = digits()[0][0][:32]
    yield "", "batch 2, 1 epoch", "batch 32, 6 epochs", "bytes kept at 32"
    for name, norm in NORMS.items():
        found = [
            [
                train(lambda: network(norm), seed, epochs, batch)[1]
                for seed in range(seeds)
            ]
            for batch, epochs in ((2, 1), (32, 6))
        ]
        kept = utils.saved_activation_bytes(network(norm), x)
        yield name, *map(spread, found), f"{kept:,}"


def shift(seeds):
    """Other brightness and contrast; digits in order, or shuffled."""
    methods = {
        "source": lambda m: m,
        "batch": lambda m: utils.adapt_batch_norm(m, target_weight=1.0),
        "alpha 0.1": utils.adapt_batch_norm,
        "alpha 0.5": lambda m: utils.adapt_batch_norm(m, target_weight=0.5),
        "UnMix-TNS": lambda m: utils.adapt_batch_norm(m, "unmix"),
    }
    _, (x, y) = digits()
    other = (0.5 * x + 0.5).astype("float32")
    order = np.argsort(y, kind="stable")
    found = {name: [[], [], []] for name in methods}
    for seed in range(seeds):
        trained, _ = train(lambda: network(NORMS[next(iter(NORMS))]), seed, 6)
        for name, method in methods.items():
            streams = (x, y), (other, y), (other[order], y[order])
            for values, stream in zip(found[name], streams):
                values.append(accuracy(method(trained), *stream))
    yield "", "as trained", "brighter, shuffled", "brighter, one digit a batch"
    for name, values in found.items():
        yield name, *map(spread, values)


def peri(seeds):
    """Variance of the streams by depth; errors of the reconstruction."""
    yield "", *[f"variance at {d}" for d in (0, 8, 32, 64)], "error", "bfloat16"
    x = np.random.default_rng(0).normal(size=(2, 32, 64)).astype("float32")
    for name in ("pre", "post", "peri"):
        variances, errors = [], [[], []]
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            for dtype, found in zip(("float32", "mixed_bfloat16"), errors):
                blocks = [
                    layers.ReversibleTransformerEncoder(
                        128, 4, normalization=name, dtype=dtype
                    )
                    for _ in range(64)
                ]
                run = layers.ReversibleSequence(blocks)
                outputs = run([x, x])
                again = run.inverse(outputs)
                found.append(
                    max(
                        np.linalg.norm(keras.ops.convert_to_numpy(a) - x)
                        / np.linalg.norm(x)
                        for a in again
                    )
                )
                if dtype == "float32":
                    variances.append(by_depth(blocks, x, (0, 8, 32, 64)))
        means = np.mean(variances, 0)
        yield (
            name,
            *[f"{v:.2f}" for v in means],
            *[f"{np.mean(e):.1e}" for e in errors],
        )


def by_depth(blocks, x, depths):
    streams, found = [x, x], []
    for depth in range(max(depths) + 1):
        if depth in depths:
            arrays = [keras.ops.convert_to_numpy(s) for s in streams]
            found.append(np.mean([a.var() for a in arrays]))
        if depth < len(blocks):
            streams = blocks[depth](streams)
    return found


def characters(seeds, steps=150):
    """A language model of characters at high learning rates."""
    (x, y), (x_test, y_test) = real_tasks.text()
    yield "", *[f"rate {rate}" for rate in (0.003, 0.01, 0.03)]
    for name in ("pre", "post", "peri"):
        row = []
        for rate in (0.003, 0.01, 0.03):
            losses = []
            for seed in range(seeds):
                keras.utils.set_random_seed(seed)
                model = models.ReversibleCausalLM(
                    128, 4, 2, 32, 64, normalization=name
                )
                model.compile(
                    keras.optimizers.Adam(rate),
                    keras.losses.SparseCategoricalCrossentropy(
                        from_logits=True
                    ),
                )
                rng = np.random.default_rng(seed)
                some = rng.integers(len(x), size=32 * steps)
                model.fit(x[some], y[some], batch_size=32, verbose=0)
                losses.append(
                    model.evaluate(x_test[:512], y_test[:512], verbose=0)
                )
            row.append(f"{spread(losses, 3)} ({np.isfinite(losses).sum()})")
        yield name, *row


def linear_attention(seeds):
    """Bytes kept by tokens, and PRepBN in a transformer of patches."""
    yield "", *[f"{n} tokens" for n in (64, 256, 1024)]
    kinds = {
        "MultiHeadAttention": lambda x, side: L.MultiHeadAttention(4, 8)(x, x),
        "SimplifiedLinearAttention": lambda x, side: (
            layers.SimplifiedLinearAttention(4, (side, side))(x)
        ),
    }
    for name, attend in kinds.items():
        row = []
        for side in (8, 16, 32):
            inputs = keras.Input((side * side, 32), 2)
            model = keras.Model(inputs, attend(inputs, side))
            x = np.ones((2, side * side, 32), "float32")
            row.append(f"{utils.saved_activation_bytes(model, x):,}")
        yield name, *row
    yield "", "accuracy", "fused", ""
    for name, norm in {
        "LayerNormalization": L.LayerNormalization,
        "PRepBN": lambda: layers.PRepBN(decay_steps=43 * 8),
    }.items():
        trained = [train(lambda: patches(norm), s, 12) for s in range(seeds)]
        fused = [fuse(model) for model, _ in trained]
        fused = "" if None in fused else spread(fused)
        yield name, spread([a for _, a in trained]), fused, ""


def patches(norm):
    inputs = keras.Input((8, 8, 1))
    x = L.Reshape((16, 32))(L.Conv2D(32, 2, 2)(inputs))
    for _ in range(2):
        x = x + layers.SimplifiedLinearAttention(4, (4, 4), 3)(norm()(x))
        y = L.Dense(64)(norm()(x))
        x = x + L.Dense(32)(L.Activation("gelu")(y))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling1D()(x)))


def fuse(model):
    """Accuracy with the norms before dense layers folded into them."""
    replaced = {}
    for norm in model.layers:
        for dense in model.layers:
            pair = isinstance(norm, layers.PRepBN), isinstance(dense, L.Dense)
            if all(pair) and dense.input is norm.output:
                replaced[norm.name] = L.Identity()
                replaced[dense.name] = norm.fuse_into(dense)
    if not replaced:
        return None
    fused = keras.models.clone_model(
        model,
        call_function=None,
        clone_function=lambda layer: replaced.get(layer.name, layer),
    )
    return accuracy(fused, *digits()[1])
