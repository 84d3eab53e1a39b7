"""Trials of methods that treat examples or runs in their own way."""

import time

import keras
import numpy as np

from benchmarks.real_tasks import digits
from keras_efficient import callbacks
from keras_efficient import layers
from keras_efficient import models
from keras_efficient import utils

TRIALS = {}
CLASSES = 10


def trial(function):
    TRIALS[function.__name__] = function
    return function


def data():
    (x, y), (x_test, y_test) = digits()
    return (x.reshape(-1, 64), y), (x_test.reshape(-1, 64), y_test)


def one_hot(y):
    return np.eye(CLASSES, dtype="float32")[y]


def mlp(seed, width=64, middle=()):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(width),
            *middle,
            keras.layers.ReLU(),
            keras.layers.Dense(CLASSES, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.003), "categorical_crossentropy")
    return model


def error(model, x, y):
    return 100 * np.mean(model.predict(x, verbose=0).argmax(-1) != y)


def calibration_error(model, x, y, bins=15):
    p = model.predict(x, verbose=0)
    sure, right = p.max(-1), p.argmax(-1) == y
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return (
        100
        * sum(
            abs(sure[place == i].sum() - right[place == i].sum())
            for i in range(bins)
        )
        / len(y)
    )


@trial
def self_distillation(seed):
    """200 digits to learn from, 60 epochs: test error and ECE, percent."""
    (x, y), test = data()
    x, y = x[seed * 200 :][:200], y[seed * 200 :][:200]
    found = {}
    for name in ("plain", "label smoothing 0.1", "SelfDistillation"):
        goal = one_hot(y)
        if "smoothing" in name:
            goal = 0.9 * goal + 0.1 / CLASSES
        dataset = utils.SelectableDataset(x, goal, batch_size=20, seed=seed)
        distil = [callbacks.SelfDistillation(dataset)]
        model = mlp(seed)
        model.fit(
            dataset,
            epochs=60,
            verbose=0,
            callbacks=distil if name == "SelfDistillation" else [],
        )
        found[f"{name}: error"] = error(model, *test)
        found[f"{name}: ECE"] = calibration_error(model, *test)
    return found


@trial
def instance_learning_rate(seed):
    """40 % of 1000 labels drawn anew, 50 trusted, 30 epochs: test error, %."""
    (x, y), test = data()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    meta, rows = order[:50], order[50:1050]
    labels = y[rows].copy()
    wrong = rng.random(len(rows)) < 0.4
    labels[wrong] = rng.integers(CLASSES, size=wrong.sum())
    found = {}
    for name in (
        *("plain", "label smoothing 0.1", "trusted examples trained on"),
        "InstanceLearningRate",
    ):
        x_train, goal = x[rows], one_hot(labels)
        if "smoothing" in name:
            goal = 0.9 * goal + 0.1 / CLASSES
        if "trusted" in name:
            x_train = np.concatenate([x_train, x[meta]])
            goal = np.concatenate([goal, one_hot(y[meta])])
        dataset = utils.SelectableDataset(x_train, goal, seed=seed)
        used = []
        if name == "InstanceLearningRate":
            pair = x[meta], one_hot(y[meta])
            used = [callbacks.InstanceLearningRate(dataset, pair)]
        model = mlp(seed)
        start = time.perf_counter()
        model.fit(dataset, epochs=30, verbose=0, callbacks=used)
        found[f"{name}: seconds"] = time.perf_counter() - start
        found[name] = error(model, *test)
    rates = dataset.sample_weight
    wrong = labels != y[rows]
    found["mean rate, wrong over right"] = (
        rates[wrong].mean() / rates[~wrong].mean()
    )
    return found


class Reach(keras.callbacks.Callback):
    """Stop where the test accuracy is reached; count what was processed."""

    def __init__(self, test, accuracy, each):
        super().__init__()
        self.test, self.accuracy, self.each = test, accuracy, each
        self.count = np.inf

    def on_epoch_end(self, epoch, logs=None):
        if error(self.model, *self.test) <= 100 * (1 - self.accuracy):
            self.count = (epoch + 1) * self.each
            self.model.stop_training = True


@trial
def ability_curriculum(seed):
    """Examples processed until 95 % of test digits are right (at most 40k)."""
    (x, y), test = data()
    crowd = []
    for member in range(6):  # small models after some epochs
        model = mlp(100 + 10 * seed + member, width=16)
        for epochs in (0, 1, 3, 5, 10):
            model.fit(x, one_hot(y), epochs=epochs and 2, verbose=0)
            crowd.append(model.predict(x, verbose=0).argmax(-1) == y)
    b = utils.item_difficulties(np.array(crowd).astype(int))
    validation = np.random.default_rng(seed).permutation(len(x))[:200]
    found = {}
    for name in ("random order", "AbilityCurriculum"):
        dataset = utils.SelectableDataset(
            x, one_hot(y), batch_size=32, steps_per_epoch=10, seed=seed
        )
        reach = Reach(test, 0.95, each=320)
        used = [reach]
        if name == "AbilityCurriculum":
            triple = x[validation], y[validation], b[validation]
            used.append(callbacks.AbilityCurriculum(dataset, b, triple))
        mlp(seed, width=64).fit(dataset, epochs=125, verbose=0, callbacks=used)
        found[name] = min(reach.count, 40000)
    return found


@trial
def learning_curve(seed):
    """Digits, at most 100 epochs, SGD: epochs done and test error, percent."""
    (x, y), test = data()
    found = {}
    for name in ("all epochs", "EarlyStopping(3)", "LearningCurve"):
        used = {
            "all epochs": [],
            "EarlyStopping(3)": [
                keras.callbacks.EarlyStopping("val_accuracy", patience=3)
            ],
            "LearningCurve": [callbacks.LearningCurve("val_accuracy")],
        }[name]
        model = mlp(seed)
        model.compile(
            keras.optimizers.SGD(0.05),
            "categorical_crossentropy",
            metrics=["accuracy"],
        )
        history = model.fit(
            *(x, one_hot(y)),
            epochs=100,
            verbose=0,
            validation_split=0.2,
            callbacks=used,
        )
        found[f"{name}: epochs"] = len(history.history["loss"])
        found[f"{name}: error"] = error(model, *test)
    return found


@trial
def simulated_curves(seed):
    """200 curves c - 0.4 x^-b with noise of 0.005, 40 epochs."""
    from keras_efficient.callbacks.power_law import fit_power_law

    rng = np.random.default_rng(seed)
    x = np.arange(1, 41)
    errors, stops = {10: [], 20: []}, []
    for _ in range(200):
        b, c = rng.uniform(0.5, 1.5), rng.uniform(0.7, 0.95)
        curve = c - 0.4 * x**-b
        noisy = curve + 0.005 * rng.normal(size=40)
        for n in errors:
            fit = fit_power_law(x[:n], noisy[:n], 1.0)[0]
            errors[n].append(abs(fit - c))
        callback = callbacks.LearningCurve("v", tolerance=0.02)
        callback.set_model(keras.Model())
        callback.set_params({"epochs": 40})
        callback.on_train_begin()
        callback.model.stop_training = False
        for epoch, value in enumerate(noisy):
            callback.on_epoch_end(epoch, {"v": value})
            if callback.model.stop_training:
                stops.append(c - curve[epoch] > 2 * 0.02)
                break
    found = {
        f"error of the asymptote at {n}, {q} %": np.percentile(values, q)
        for n, values in errors.items()
        for q in (50, 90)
    }
    found["stops, of 200"] = len(stops)
    found["with over twice the tolerance left, %"] = 100 * np.mean(stops)
    return found


@trial
def shannon_decay(seed):
    """200 digits to learn from, 60 epochs: test error, percent."""
    (x, y), test = data()
    x, y = x[seed * 200 :][:200], y[seed * 200 :][:200]
    found = {}
    for name, middle in (
        ("plain", []),
        ("Dropout(0.3)", [keras.layers.Dropout(0.3)]),
        ("ShannonDecay(1e-3)", [layers.ShannonDecay(1e-3)]),
        ("ShannonDecay(1e-2)", [layers.ShannonDecay(1e-2)]),
    ):
        model = mlp(seed, middle=middle)
        model.fit(x, one_hot(y), 20, epochs=60, verbose=0)
        found[name] = error(model, *test)
    return found


def block(inputs, size):
    x, z = keras.Input((inputs,)), keras.Input((size,))
    y = keras.layers.Concatenate()([x, z])
    for _ in range(2):
        y = keras.layers.Dense(64, "relu")(y)
    return keras.Model([x, z], keras.layers.Dense(CLASSES)(y))


@keras.saving.register_keras_serializable(package="benchmarks")
class Chain(keras.Model):
    """The blocks of NoProp, trained by back-propagation through all."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def call(self, x):
        z = keras.ops.zeros_like(x[:, :CLASSES])
        for run in self.blocks:
            z = z + run([x, z])
        return z


@trial
def no_prop(seed):
    """Ten blocks, 30 epochs of the digits: test error, %; bytes kept."""
    (x, y), (x_test, y_test) = data()
    found = {}
    for name in ("back-propagation", "NoProp"):
        for steps in (2, 10):
            keras.utils.set_random_seed(seed)
            blocks = [block(64, CLASSES) for _ in range(steps)]
            loss = None
            if name == "NoProp":
                model = models.NoProp(blocks, CLASSES, seed=seed)
            else:
                model = Chain(blocks)
                loss = keras.losses.SparseCategoricalCrossentropy(True)
            model.compile(keras.optimizers.AdamW(3e-3, weight_decay=1e-3), loss)
            epochs = 30 if steps == 10 else 1  # two blocks are for the bytes
            start = time.perf_counter()
            model.fit(x, y, 64, epochs=epochs, verbose=0)
            found[f"{name}, {steps} blocks: bytes"] = kept(model, x, y)
            if steps == 10:
                found[f"{name}: seconds"] = time.perf_counter() - start
                found[f"{name}: error"] = error(model, x_test, y_test)
    return found


class LossOf(keras.layers.Layer):
    def __init__(self, model, y):
        super().__init__()
        self.model, self.y = model, y

    def call(self, x, training=False):
        y_pred = self.model(x, training=True)
        return self.model.compute_loss(x, self.y, y_pred, training=True)


def kept(model, x, y):
    return utils.saved_activation_bytes(LossOf(model, y[:128]), x[:128])


@trial
def ridge(seed):
    """15 features, 40 examples: log decay and the tuning loss over the best."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(15, 1))

    def draw():
        x = rng.normal(size=(40, 15))
        return x, x @ w + 3 * rng.normal(size=(40, 1))

    (x, y), (x_t, y_t) = draw(), draw()

    def loss(log_decay):
        gram = x.T @ x / 40 + np.exp(log_decay) * np.eye(15)
        return np.mean((x_t @ np.linalg.solve(gram, x.T @ y / 40) - y_t) ** 2)

    grid = np.linspace(-8, 5, 1301)
    best = grid[np.argmin([loss(g) for g in grid])]
    found = {"grid: log decay": best}
    for start in (-5.0, 3.0):
        a, h = keras.Input((15,)), keras.Input((1,))
        dense = layers.SelfTuningDense(1, use_bias=False, decay=0)
        keras.utils.set_random_seed(seed)
        model = models.SelfTuning(
            keras.Model([a, h], dense([a, h])),
            {"log_decay": start},
            tune_scale=False,
            warmup_steps=200,
            seed=seed,
        )
        rates = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.03))
        rates[".*hyperparameters.*"] = keras.optimizers.Adam(0.01)
        model.compile(keras.optimizers.MultiOptimizer(rates), "mse")
        model.fit(
            *(np.tile(x, (2400, 1)), np.tile(y, (2400, 1))),
            tuning_data=(x_t, y_t),
            batch_size=40,
            shuffle=False,
            verbose=0,
        )
        value = model.hyperparameter_values()["log_decay"]
        found[f"from {start}: log decay"] = value
        found[f"from {start}: loss over the best"] = loss(value) / loss(best)
    return found
