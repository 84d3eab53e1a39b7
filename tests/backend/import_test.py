"""What importing and using the package asks of the environment."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("jax", "tensorflow", "torch")

HIDE = """
import sys

def is_hidden(name):
    return name.split(".")[0] in hidden

class Finder:
    '''A finder to which the hidden packages are not installed.'''

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if is_hidden(name) else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
"""

TRAIN = """
import keras
import numpy as np

import keras_efficient

def coupling():
    layers = keras.layers.Dense(4), keras.layers.Dense(4)
    return keras_efficient.layers.AdditiveCoupling(*layers)

blocks = [coupling() for _ in range(2)]
inputs = keras.Input((8,))
x = keras_efficient.layers.ReversibleSequence(blocks)(inputs)
model = keras.Model(inputs, keras.layers.Dense(1)(x))
model.compile(keras_efficient.optimizers.MicroAdam(min_size=1), "mse")
x = np.ones((16, 8), "float32")
history = model.fit(
    x,
    x[:, :1],
    batch_size=8,
    callbacks=[keras_efficient.callbacks.AutoDrop()],
    verbose=0,
)
assert np.isfinite(history.history["loss"]).all()
assert not list(filter(is_hidden, sys.modules))
"""

COMPARE = """
import sys

import keras

before = set(sys.modules)
import keras_efficient

print(*sorted(set(sys.modules) - before))
"""

FORWARD = """
import keras
import numpy as np
import pytest

import keras_efficient
from keras_efficient import layers

def function():
    return keras.Sequential([
        keras.layers.LayerNormalization(),
        keras.layers.Dense(4, activation="gelu"),
    ])

run = layers.ReversibleSequence([
    layers.AdditiveCoupling(function(), function()),
    layers.AdditiveCoupling(function()),
])
inputs = keras.Input((8,))
model = keras.Model(inputs, run(inputs))
x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
for layer in (run, layers.AdditiveCoupling(function())):
    for training in (False, True):
        y = layer(x, training=training)
        assert abs(y - x).max() > 0.1
        np.testing.assert_allclose(layer.inverse(y), x, atol=1e-5)
np.testing.assert_allclose(model.predict(x, verbose=0), run(x), atol=1e-6)

for refused in (
    lambda: keras_efficient.utils.saved_activation_bytes(model, x),
    lambda: keras_efficient.backend.vjp(np.sin, x),
):
    with pytest.raises(NotImplementedError, match="'numpy'.*KERAS_BACKEND"):
        refused()
model.compile(keras_efficient.optimizers.MicroAdam(), "mse")
with pytest.raises(NotImplementedError, match="fit not implemented for NumPy"):
    model.fit(x, x, verbose=0)
"""


def run(script, backend):
    """Run `script` in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trains_where_no_other_framework_is_installed():
    backend = keras.config.backend()
    hidden = [name for name in FRAMEWORKS if name != backend]
    run(f"hidden = {hidden}\n{HIDE}{TRAIN}", backend)


@pytest.mark.parametrize("backend", [keras.config.backend(), "numpy"])
def test_import_brings_in_no_framework(backend):
    new = run(COMPARE, backend).split()
    assert "keras_efficient.layers" in new
    # That of the backend is there already, and may bring in more of itself.
    others = set(FRAMEWORKS) - {backend}
    assert not {name.split(".")[0] for name in new} & others


def test_runs_forward_on_numpy():
    run(FORWARD, "numpy")
