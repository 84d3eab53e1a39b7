"""Train under strategies of TensorFlow.

`python tensorflow_run.py FOLDER` trains on one device and on two that are
mirrored, and with two processes that it starts; it writes `found.json`.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

IS_WORKER = len(sys.argv) > 2
if IS_WORKER:
    # Before anything else has used a device.
    STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()
else:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

import keras  # noqa: E402

from keras_efficient import layers  # noqa: E402
from keras_efficient import optimizers  # noqa: E402
from keras_efficient.callbacks import AutoDrop  # noqa: E402
from keras_efficient.callbacks import BanditLearningRate  # noqa: E402
from tests.optimizers.resumed_run import KillAt  # noqa: E402
from tests.optimizers.resumed_run import Killed  # noqa: E402

OPTIMIZERS = {
    "Keras": keras.optimizers.Adam,
    "MicroAdam": optimizers.MicroAdam,
    "Adam8bit": optimizers.Adam8bit,
}


def make_model(optimizer, jit_compile=False):
    keras.utils.set_random_seed(0)
    inner = keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh")
    inputs = keras.Input((64,))
    x = layers.ReversibleSequence([layers.AdditiveCoupling(*inner)])(inputs)
    x = layers.Recompute(keras.layers.Dense(64, "tanh"))(x)
    model = keras.Model(inputs, keras.layers.Dense(8)(x))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def fit(make, scope, *callbacks, jit_compile=False, folder=None):
    with scope():
        model = make_model(make(1e-3), jit_compile)
    x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    callbacks = list(callbacks)
    if folder:
        callbacks.append(
            keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
        )
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :8])).batch(16)
    history = model.fit(
        data.repeat(3),
        epochs=3,
        steps_per_epoch=4,
        verbose=0,
        callbacks=callbacks,
    )
    return history.history["loss"]


def attempt(function, *args, **options):
    try:
        return function(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]


def loop(make, index):
    """Train in a loop; each process has half of a batch."""
    with STRATEGY.scope():
        model = make_model(make(1e-3))
        model.optimizer.build(model.trainable_variables)

    def step_replica(x):
        with tf.GradientTape() as tape:
            error = tf.square(model(x, training=True) - x[:, :8])
            loss = tf.reduce_mean(error) / STRATEGY.num_replicas_in_sync
        weights = [v.value for v in model.trainable_variables]
        gradients = tape.gradient(loss, weights)
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def step(x):
        losses = STRATEGY.run(step_replica, args=(x,))
        return STRATEGY.reduce("SUM", losses, axis=None)

    x = np.random.default_rng(0).normal(size=(32, 64)).astype("float32")
    x = tf.constant(x[index::2])
    return [float(step(x)) for _ in range(5)]


def decisions(scope):
    bandit = BanditLearningRate([1e-4, 1e-3], steps_per_pull=1)
    drop = AutoDrop(mode="window", window_steps=1, threshold=180)
    fit(optimizers.Adam8bit, scope, bandit)
    fit(optimizers.Adam8bit, scope, drop)
    return [*bandit._memory["pulls"], *drop.drop_steps]


def mirrored(folder):
    one, two = contextlib.nullcontext, STRATEGY.scope
    found = {"replicas": STRATEGY.num_replicas_in_sync}
    for name, make in OPTIMIZERS.items():
        found[name] = [fit(make, one), attempt(fit, make, two)]
        if name != "Adam8bit":
            found[f"{name} jit"] = attempt(fit, make, two, jit_compile=True)
    with contextlib.suppress(Killed):
        fit(
            optimizers.MicroAdam,
            two,
            KillAt(epoch=1, batch=1),
            folder=folder / "backup",
        )
    found["resumed"] = fit(optimizers.MicroAdam, one, folder=folder / "backup")
    found["decisions"] = [decisions(one), decisions(two)]
    return found


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for x in sockets:
        x.bind(("127.0.0.1", 0))
    ports = [x.getsockname()[1] for x in sockets]
    for x in sockets:
        x.close()
    return ports


def start_workers(folder):
    """Return what each of two processes has found, or why there are none."""
    try:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    except OSError as error:
        return str(error)
    processes = []
    for index in range(2):
        task = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, folder, str(index)],
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
            )
        )
    for process in processes:
        process.wait(timeout=120)
    paths = [folder / f"worker_{index}.json" for index in range(2)]
    return [json.loads(path.read_text()) for path in paths]


def main(folder, index=None):
    if index is not None:
        found = {
            "replicas": STRATEGY.num_replicas_in_sync,
            "fit": attempt(fit, keras.optimizers.Adam, STRATEGY.scope),
            "losses": attempt(loop, optimizers.MicroAdam, int(index)),
        }
        (folder / f"worker_{index}.json").write_text(json.dumps(found))
        return
    found = mirrored(folder)
    (folder / "found.json").write_text(json.dumps(found))
    found["workers"] = start_workers(folder)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
