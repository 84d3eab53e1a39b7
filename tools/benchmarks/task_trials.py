"""Trials of methods for tasks one after the other, and of elastic networks."""

import keras
import numpy as np

from benchmarks.method_trials import CLASSES
from benchmarks.method_trials import data
from benchmarks.method_trials import error
from benchmarks.method_trials import one_hot
from keras_efficient import callbacks
from keras_efficient import layers
from keras_efficient import losses
from keras_efficient import optimizers
from keras_efficient import utils

TRIALS = {}


def trial(function):
    TRIALS[function.__name__] = function
    return function


def part(pair, classes):
    x, y = pair
    rows = np.isin(y, list(classes))
    return x[rows], y[rows]


def backbone_and_head(seed, head=None):
    keras.utils.set_random_seed(seed)
    x = keras.Input((64,))
    y = keras.layers.Dense(64, "relu", name="block_0")(x)
    features = keras.layers.Dense(64, "relu", name="block_1")(y)
    head = head or keras.layers.Dense(CLASSES, name="head")
    return keras.Model(x, features), keras.Model(x, head(features))


def fit(model, pair, optimizer=None, epochs=20):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.001), loss)
    model.fit(*pair, epochs=epochs, verbose=0)


OLD, NEW = range(5), range(5, 10)


def errors(name, model, test):
    """Of old and new digits, each among all ten."""
    return {
        f"{name}: old": error(model, *part(test, OLD)),
        f"{name}: new": error(model, *part(test, NEW)),
    }


@trial
def forgetting(seed):
    """Digits 0-4, then 5-9 without the former: errors among all ten, %."""
    train, test = data()
    found = {}
    old, new = part(train, OLD), part(train, NEW)
    features, model = backbone_and_head(seed)
    fit(model, old)
    start = [w.copy() for w in model.get_weights()]
    found.update(errors("before", model, test))
    fit(model, new)
    found.update(errors("fine-tuned", model, test))
    tuned = [w.copy() for w in model.get_weights()]

    _, first = backbone_and_head(seed)
    first.set_weights(start)
    for head in (1.0, 0.5):
        weights = utils.scale_task_vector(
            first, model, ["block_0", "block_1"], alpha=0.1, head=head
        )
        model.set_weights(weights)
        found.update(errors(f"LiNeS, head {head}", model, test))

    model.set_weights(tuned)
    parts = [features.predict(p[0], verbose=0) for p in (old, new)]
    statistics = utils.class_statistics(
        np.concatenate(parts), np.concatenate([old[1], new[1]])
    )
    tasks = [0] * 5 + [1] * 5
    utils.align_classifier(model.get_layer("head"), *statistics, tasks)
    found.update(errors("SLCA, features of now", model, test))

    for energy in (0.9, 0.99):
        model.set_weights(start)
        bases = utils.input_bases(model, old[0], energy=energy)
        optimizer = optimizers.GradientProjection(
            keras.optimizers.Adam(0.001), bases
        )
        fit(model, new, optimizer)
        found.update(errors(f"GradientProjection {energy}", model, test))
    return found


@trial
def fixed_heads(seed):
    """The same two tasks, by head: errors among all ten digits, %."""
    train, test = data()
    found = {}
    for name in ("trained", "orthogonal", "simplex"):
        head = None
        if name != "trained":
            head = layers.FixedClassifier(CLASSES, name, 0.2, seed=seed)
        _, model = backbone_and_head(seed, head)
        for classes in (OLD, NEW):
            fit(model, part(train, classes))
        found.update(errors(name, model, test))
    return found


@trial
def pooled_outputs(seed):
    """The same with convolutions; new digits with POD on old maps, %."""
    train, test = data()
    found = {}
    for factor in (0.0, 1.0, 10.0):
        keras.utils.set_random_seed(seed)
        x = keras.Input((64,))
        y = keras.layers.Reshape((8, 8, 1))(x)
        conv = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        maps = keras.layers.Conv2D(32, 3, 2, "same", activation="relu")(conv(y))
        y = keras.layers.Flatten()(maps)
        model = keras.Model(x, keras.layers.Dense(CLASSES)(y))
        fit(model, part(train, OLD))
        both = keras.Model(x, [model.output, maps])
        x_new, y_new = part(train, NEW)
        held = keras.Model(x, maps).predict(x_new, verbose=0)
        both.compile(
            keras.optimizers.Adam(0.001),
            [
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                losses.PooledOutputsDistillation(),
            ],
            loss_weights=[1.0, factor],
        )
        both.fit(x_new, [y_new, held], epochs=20, verbose=0)
        found.update(errors(f"factor {factor}", model, test))
    return found


@trial
def elastic(seed):
    """Hidden units that count: error of a part, and of one trained alone, %."""
    train, test = data()
    keras.utils.set_random_seed(seed)
    sizes = (64, 32, 16, 8)
    hidden = layers.ElasticDense(64, "relu")
    head = layers.ElasticDense(CLASSES, "softmax")
    model = keras.Sequential([keras.Input((64,)), hidden, head])

    def choose(random):
        size = int(random.choice(sizes))
        hidden.set_active(units=size)
        head.set_active(inputs=size)

    sampling = callbacks.SubnetworkSampling(choose, seed)
    model.compile(keras.optimizers.Adam(0.003), "categorical_crossentropy")
    pair = train[0], one_hot(train[1])
    model.fit(*pair, epochs=60, verbose=0, callbacks=[sampling])
    found = {}
    for size in sizes:
        hidden.set_active(units=size)
        head.set_active(inputs=size)
        small = keras.Sequential(
            [keras.Input((64,)), hidden.export(), head.export()]
        )
        found[f"{size} of 64, exported"] = error(small, *test)
        alone = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(size, "relu"),
                keras.layers.Dense(CLASSES, "softmax"),
            ]
        )
        alone.compile(keras.optimizers.Adam(0.003), "categorical_crossentropy")
        alone.fit(*pair, epochs=60, verbose=0)
        found[f"{size}, alone"] = error(alone, *test)
    return found


@trial
def stitch(seed):
    """The first block of one network, the second of another: error, %."""
    train, test = data()
    networks = []
    for i in range(2):
        _, model = backbone_and_head(10 * seed + i)
        fit(model, train)
        networks.append(model)
    found = {"first": error(networks[0], *test)}
    found["second"] = error(networks[1], *test)
    maps = [
        keras.Model(m.input, m.get_layer("block_0").output) for m in networks
    ]
    x = train[0][:100]
    front, end = (m.predict(x, verbose=0) for m in maps)
    rest = [networks[1].get_layer(n) for n in ("block_1", "head")]
    for name, bridge in (
        ("as they are", keras.layers.Identity()),
        ("least squares", utils.least_squares_stitch(front, end)),
        ("ridge 1", utils.least_squares_stitch(front, end, ridge=1.0)),
    ):
        y = maps[0].output
        for layer in (bridge, *rest):
            y = layer(y)
        found[name] = error(keras.Model(maps[0].input, y), *test)
    return found
