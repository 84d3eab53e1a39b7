"""The process of `check_gpu.py` that checks what is right or wrong.

`python -m benchmarks.gpu_checks cuda result.json`. Checks are functions that
yield rows; none needs pytest. Networks and the pass through them are those of
the tests. What is compared is compared in float32: `check_gpu.py` turns off the
rounding to TF32 by environment variables.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers
from keras import ops

import keras_efficient
from benchmarks.gpu_rows import at_most
from benchmarks.gpu_rows import failed
from benchmarks.gpu_rows import row
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from tests.gradients import MODES
from tests.gradients import gradient_step
from tests.gradients import to_numpy
from tests.twins import batch
from tests.twins import function
from tests.twins import noise
from tests.twins import relative_errors
from tests.twins import twins

BACKEND = keras.config.backend()
KINDS = ("reversible run", "Recompute")


def reversible_run(device):
    """Reversible run: outputs, gradients and state, error against plain"""
    yield at_most(reversible_run.__doc__, steps_apart(twins()), 1e-4)


def recompute(device):
    """Recompute: outputs, gradients and state, error against plain"""
    yield at_most(recompute.__doc__, steps_apart(recompute_pair()), 1e-4)


def mixed_precision(device):
    """Mixed precision: gradients, error against plain"""
    for policy, bound in (("mixed_bfloat16", 5e-2), ("mixed_float16", 1e-2)):
        keras.config.set_dtype_policy(policy)
        try:
            for kind in KINDS:
                what = f"{kind}, {policy}: gradients, error against plain"
                apart = steps_apart(normalized_twins(kind))
                yield at_most(what, apart, bound)
        finally:
            keras.config.set_dtype_policy("float32")


def random_numbers(device):
    """Random numbers of the device are drawn again, and then go on"""
    model = recompute_pair()[0]
    step = gradient_step(model, MODES[-1])
    first, second = (step([batch(16, 8)])[0][0] for _ in range(2))
    what = "Dropout: entries that two steps have in common"
    yield at_most(what, np.mean(first == second), 0.5)
    if BACKEND != "torch":
        return
    import torch

    drawn, gradients = [], []
    for wrap in (Recompute, keras.Sequential):
        keras.utils.set_random_seed(7)
        layer = wrap([function(None), layers.Lambda(noise), function(None)])
        y = layer(ops.convert_to_tensor(batch(32, 4)), training=True)
        forward = torch.rand(1000, device=device)
        ops.sum(y).backward()
        drawn.append([y, forward, torch.rand(1000, device=device)])
        found = [v.value.grad for v in layer.trainable_variables]
        gradients.append(to_numpy(found))
    unequal = sum(torch.sum(a != b).item() for a, b in zip(*drawn))
    what = "Recompute: numbers of the generator that differ, after it"
    yield at_most(what, unequal, 0)
    what = "Recompute: gradients behind what is drawn without a seed, error"
    yield at_most(what, max(relative_errors(*gradients)), 1e-4)


def autocast(device):
    """PyTorch's autocast: gradients, error against plain"""
    if BACKEND != "torch":
        return
    import torch

    for kind in KINDS:
        gradients = []
        for model in normalized_twins(kind):
            keras.utils.set_random_seed(5)
            x = ops.convert_to_tensor(batch(64, 8))
            with torch.autocast(device, torch.bfloat16):
                loss = ops.sum(model(x, training=True) ** 2)
            loss.backward()
            found = [v.value.grad for v in model.trainable_variables]
            gradients.append(to_numpy(found))
        what = f"{kind}: gradients under PyTorch's autocast, error"
        yield at_most(what, max(relative_errors(*gradients)), 1e-2)


def training(device):
    """`fit` with MicroAdam in mixed_float16, with its loss scale"""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((64,))
        couplings = [
            AdditiveCoupling(layers.Dense(32, "tanh"), layers.Dense(32, "tanh"))
            for _ in range(2)
        ]
        run = ReversibleSequence(couplings)
        outputs = layers.Dense(1, dtype="float32")
        x = layers.Dense(64)(inputs)
        model = keras.Model(inputs, outputs(run(x)))
        optimizer = keras_efficient.optimizers.MicroAdam(3e-3, min_size=512)
        model.compile(optimizer, "mse", jit_compile=BACKEND != "torch")
        x = batch(256, 64)
        history = model.fit(
            x, x[:, :1], batch_size=32, epochs=3, verbose=0, shuffle=False
        ).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    what = f"{training.__doc__}: last loss / first"
    yield at_most(what, history[-1] / history[0], 0.7)


def recompute_pair():
    """Return a model with `Recompute` around layers, and its plain twin."""
    models = []
    for wraps in (True, False):
        keras.utils.set_random_seed(7)
        inputs = x = keras.Input((8,))
        segments = [function(3), function(None), layers.BatchNormalization()]
        for layer in [Recompute(segments)] if wraps else segments:
            x = layer(x)
        models.append(keras.Model(inputs, layers.Dense(3)(x)))
    return models


def normalized_twins(kind):
    """Return a model with a reversible run or `Recompute`, and its twin.

    Without statistics over the batch, which multiply what is rounded.
    """
    models = []
    for is_plain in (False, True):
        keras.utils.set_random_seed(7)
        width = 4 if kind == "reversible run" else 8
        functions = [normalized_function(width) for _ in range(6)]
        if kind == "reversible run":
            pairs = zip(functions[::2], functions[1::2])
            blocks = [AdditiveCoupling(f, g) for f, g in pairs]
            run = ReversibleSequence(blocks, reversible=not is_plain)
        else:
            run = (keras.Sequential if is_plain else Recompute)(functions)
        inputs = keras.Input((8,))
        models.append(keras.Model(inputs, run(inputs)))
    return models


def normalized_function(width):
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(16, "gelu"),
            layers.Dropout(0.2),
            layers.Dense(width),
        ]
    )


def steps_apart(models):
    """Return the largest relative error of what two steps of models give."""
    found = []
    for model in models:
        keras.utils.set_random_seed(1)
        step = gradient_step(model, MODES[-1])
        arrays = [
            x for _ in range(2) for part in step([batch(16, 8)]) for x in part
        ]
        arrays += to_numpy(model.non_trainable_variables)
        found.append([np.asarray(x, "float64") for x in arrays])
    return max(relative_errors(*found))


def device_of_tensors(device):
    """Where tensors lie"""
    found = str(ops.ones(3).device).lower()
    names = {"cuda": ("cuda", "gpu"), "cpu": ("cpu",)}[device]
    verdict = "PASS" if any(name in found for name in names) else "FAIL"
    yield row(device_of_tensors.__doc__, device, found, verdict)


def main(device, output):
    if BACKEND == "torch" and device == "cuda":
        # Before TensorFlow, which seeding loads where it is installed.
        import triton  # noqa: F401
    from benchmarks.gpu_optimizer_checks import optimizer_checks

    checks = [
        device_of_tensors,
        reversible_run,
        recompute,
        random_numbers,
        *optimizer_checks,
        mixed_precision,
        autocast,
        training,
    ]
    rows = []
    for check in checks:
        try:
            for found in check(device):
                rows.append(found)
                Path(output).write_text(json.dumps({"rows": rows}))
        except Exception as error:
            words = " ".join(str(error).split())[:400] or "no message"
            reason = f"{type(error).__name__}: {words}"
            rows.append(failed(check.__doc__.splitlines()[0], reason))
            Path(output).write_text(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
