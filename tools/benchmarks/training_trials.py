"""The trials of `training_methods`: functions from a seed to figures."""

import time

import keras
import numpy as np
from keras import layers
from keras import ops
from sklearn.datasets import load_digits

import keras_efficient as ke
from benchmarks import training_texts
from keras_efficient.utils.layer_budgets import mean_gradients

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def digits(seed, flat=False):
    """Return training and test images and labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x = (x[order] / 16).astype("float32")
    x = x if flat else x.reshape(-1, 8, 8, 1)
    return (x[:1200], y[order][:1200]), (x[1200:], y[order][1200:])


def fit(model, data, optimizer, batch_size, epochs, callbacks=()):
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    return model.fit(
        *data,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
    ).history


def accuracy(model, data):
    """Return the percentage of right answers."""
    model.compile(loss=LOSS, metrics=["accuracy"])
    return 100 * model.evaluate(*data, verbose=0)[1]


def sparse_nm(seed):
    """Test accuracy of a dense network of 64-64-64, kernels 1:8 and 1:16."""
    train, test = digits(seed, flat=True)
    epochs, batch_size = 30, 32
    steps = epochs * len(train[0]) // batch_size
    found = {}
    contenders = {"dense": None}
    for m in (8, 16):
        for name, options in {
            "step": {"method": "step"},
            "SR-STE": {"method": "sr_ste"},
            "mask decay, scaled": {},
            "mask decay, straight": {"gradient": "straight_through"},
            "structure decay": {"method": "structure_decay"},
        }.items():
            contenders[f"1:{m} {name}"] = {"n": 1, "m": m, **options}
    for name, options in contenders.items():
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((64,))])
        for _ in range(2):
            layer = layers.Dense(64, "relu")
            if options is not None:
                layer = ke.layers.SparseNM(
                    layer, dense_steps=steps // 5, rate=2 / steps, **options
                )
            model.add(layer)
        model.add(layers.Dense(10))
        fit(model, train, keras.optimizers.Adam(1e-3), batch_size, epochs)
        if options is not None:
            ke.layers.SparseNM.sparsify(model)
        found[name] = accuracy(model, test)
    return found


def micro_batches(seed):
    """Test accuracy of a small CNN after 3 epochs, by its normalization."""
    train, test = digits(seed)

    def network(norm, standardized):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((8, 8, 1))])
        for filters in (16, 32):
            conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
            if standardized:
                conv = ke.layers.WeightStandardization(conv)
            model.add(conv)
            model.add(norm())
            model.add(layers.ReLU())
            model.add(layers.MaxPooling2D())
        model.add(layers.Flatten())
        model.add(layers.Dense(10))
        return model

    def groups():
        return layers.GroupNormalization(4)

    def channels():
        return ke.layers.BatchChannelNormalization(4, momentum=0.99)

    found = {}
    for name, norm, standardized, size in (
        ("BN, batch 64", layers.BatchNormalization, False, 64),
        ("BN, batch 2", layers.BatchNormalization, False, 2),
        ("GN, batch 2", groups, False, 2),
        ("WS + GN, batch 2", groups, True, 2),
        ("WS + BCN, batch 2", channels, True, 2),
    ):
        model = network(norm, standardized)
        # As many examples and the same sum of rates for all.
        rate = 0.05 * size / 64
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        fit(model, train, optimizer, size, 3)
        found[name] = accuracy(model, test)
    return found


def tune_mode(seed):
    """Outputs and gradients, maps kept and seconds a step, images of 64."""
    found = {}
    x = np.random.default_rng(seed).normal(size=(4, 64, 64, 3))
    x = x.astype("float32")
    for name in ("ResNet50", "MobileNetV3Small"):
        keras.utils.set_random_seed(seed)
        options = {"include_top": False, "input_shape": (64, 64, 3)}
        if "Mobile" in name:
            options["include_preprocessing"] = False
        model = getattr(keras.applications, name)(weights=None, **options)
        model(x, training=True)  # statistics of some images
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                hold(layer)
        results = []
        for tune in (False, True):
            if tune:
                pairs = ke.utils.to_tune_mode(model)
            y = ops.convert_to_numpy(model(x, training=True))
            _, gradients = mean_gradients(compiled(model), [(x, y * 0)])
            kept = ke.utils.saved_activation_bytes(model, x)
            results.append((y, gradients, kept, seconds(model, x, y)))
        (y, g, kept, time_), (y2, g2, kept2, time_2) = results
        scale = max(np.abs(a).max() for a in g)
        found[f"{name}: pairs"] = pairs
        found[f"{name}: output error"] = np.abs(y - y2).max() / np.abs(y).max()
        found[f"{name}: gradient error"] = (
            max(np.abs(a - b).max() for a, b in zip(g, g2)) / scale
        )
        found[f"{name}: MB kept, eval"] = kept / 1e6
        found[f"{name}: MB kept, tune"] = kept2 / 1e6
        found[f"{name}: step time, tune / eval"] = time_2 / time_
    return found


def hold(layer):
    """Fix the statistics of a normalization, as in eval mode."""
    call = layer.call
    vars(layer)["call"] = lambda x, training=None, mask=None: call(
        x, training=False
    )


def compiled(model):
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def seconds(model, x, y, steps=6):
    model.train_on_batch(x, y)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        times.append(time.perf_counter() - start)
    return np.median(times)


def select(seed):
    """Accuracy on digits 5-9 after fine-tuning, and on 0-4 from before."""
    train, test = digits(seed, flat=True)
    (first, second), (first_test, second_test) = (
        [(x[(y > 4) == late], y[(y > 4) == late]) for late in (False, True)]
        for x, y in (train, test)
    )
    keras.utils.set_random_seed(seed)

    def network():
        return keras.Sequential(
            [
                keras.Input((64,)),
                layers.Dense(128, "relu"),
                layers.Dense(128, "relu"),
                layers.Dense(10),
            ]
        )

    before = network()
    fit(before, first, keras.optimizers.Adam(1e-3), 32, 20)
    found = {"before: 0-4": accuracy(before, first_test)}
    for name, make in {
        "Adam": lambda: keras.optimizers.Adam(1e-3),
        "LoRA, rank 4": lambda: keras.optimizers.Adam(5e-3),
        "SelectedAdam, 10 %": lambda: ke.optimizers.SelectedAdam(
            3e-3, min_size=512
        ),
        "SelectedAdam, largest": lambda: ke.optimizers.SelectedAdam(
            3e-3, min_size=512, select="largest"
        ),
        "SelectedAdam, penalty": lambda: ke.optimizers.SelectedAdam(
            3e-3, min_size=512, rank_penalty=5e-4
        ),
    }.items():
        keras.utils.set_random_seed(seed)
        model = network()
        model.set_weights(before.get_weights())
        if "LoRA" in name:
            for layer in model.layers:
                layer.enable_lora(4)
        optimizer = make()
        fit(model, second, optimizer, 32, 5)
        state = ke.utils.optimizer_state_bytes(optimizer)
        found[f"{name}: 5-9"] = accuracy(model, second_test)
        found[f"{name}: 0-4"] = accuracy(model, first_test)
        found[f"{name}: bytes"] = state
    return found


def convolutional(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    return model


def average(seed):
    """Test accuracy of SWAP; in brackets, steps one after the other."""
    train, test = digits(seed)

    def sgd(rate):
        return keras.optimizers.SGD(rate, momentum=0.9)

    found = {}
    model = convolutional(seed)
    fit(model, train, sgd(0.2), 256, 25)
    found["large batch alone (125)"] = accuracy(model, test)
    model = convolutional(seed)
    fit(model, train, sgd(0.02), 16, 12)
    found["small batch alone (900)"] = accuracy(model, test)

    model = convolutional(seed)
    fit(model, train, sgd(0.2), 256, 10)
    singles, start = [], model.get_weights()

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch % 2 == 0 and epoch:  # the second of each worker
                singles.append(self.model.get_weights())

    swap = ke.callbacks.ParallelAverage(
        4,
        switch_epoch=1,
        worker_epochs=2,
        learning_rate=lambda epoch: 0.01 / (1 + epoch),
        recompute=train[0],
    )
    fit(model, train, sgd(0.01), 16, 9, [Watch(), swap])
    found["mean of workers (50 + 225)"] = accuracy(model, test)
    final = model.get_weights()
    others = []
    for weights in singles:
        model.set_weights(weights)
        others.append(accuracy(model, test))
    found["single workers"] = np.mean(others)
    model.set_weights(final)
    for layer, values in zip(model.layers, convolutional(seed).layers):
        if isinstance(layer, layers.BatchNormalization):
            place = [id(w) for w in model.weights].index(id(layer.moving_mean))
            layer.moving_mean.assign(start[place])
            layer.moving_variance.assign(start[place + 1])
    found["mean of workers, old statistics"] = accuracy(model, test)
    return found


def adaptive(seed):
    """Steps, samples and accuracy at the end of 12 epochs; micro-batch 8."""
    train, test = digits(seed)
    found = {}
    for name, make, size in (
        ("fixed 16", lambda: keras.optimizers.Adagrad(0.03), 16),
        ("fixed 256", lambda: keras.optimizers.Adagrad(0.03), 256),
        (
            "AdaptiveBatch, eta 0.5",
            lambda: ke.optimizers.AdaptiveBatch(
                keras.optimizers.Adagrad(0.03), eta=0.5, max_micro_batches=32
            ),
            8,
        ),
        (
            "AdaptiveBatch, AdaGradNorm",
            lambda: ke.optimizers.AdaptiveBatch(
                ke.optimizers.AdaGradNorm(1.0), eta=0.5, max_micro_batches=32
            ),
            8,
        ),
    ):
        optimizer, model = make(), convolutional(seed)
        reached = []

        class Watch(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if logs["val_accuracy"] >= 0.97 and not reached:
                    steps = int(ops.convert_to_numpy(optimizer.iterations))
                    reached.append((steps, 1200 * (epoch + 1)))

        model.compile(optimizer, LOSS, metrics=["accuracy"])
        model.fit(
            *train,
            batch_size=size,
            epochs=12,
            callbacks=[Watch()],
            validation_data=test,
            verbose=0,
        )
        steps, samples = reached[0] if reached else (np.nan, np.nan)
        found[f"{name}: steps to 97 %"] = steps
        found[f"{name}: samples to 97 %"] = samples
        found[f"{name}: accuracy"] = accuracy(model, test)
        if hasattr(optimizer, "micro_batches"):
            last = int(ops.convert_to_numpy(optimizer.micro_batches))
            found[f"{name}: micro-batches at the end"] = last
    return found


TRIALS = {
    "sparse_nm": sparse_nm,
    "micro_batches": micro_batches,
    "tune_mode": tune_mode,
    "select": select,
    "average": average,
    "adaptive": adaptive,
    **training_texts.TRIALS,
}
