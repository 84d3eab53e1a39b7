"""What a training step keeps does not grow with the number of blocks.

Each figure of a reversible model stands beside that of its plain twin, which
has to grow: a measure that does not see activations proves nothing.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes

BACKEND = keras.config.backend()
ROOT = Path(__file__).resolve().parents[2]
X = np.ones((4096, 128), "float32")


def function():
    return keras.Sequential(
        [
            layers.LayerNormalization(),
            layers.Dense(64, activation="gelu"),
            layers.Dropout(0.1),
        ]
    )


def build(depth, reversible):
    inputs = keras.Input((128,))
    blocks = [AdditiveCoupling(function(), function()) for _ in range(depth)]
    x = ReversibleSequence(blocks, reversible)(inputs)
    return keras.Model(inputs, layers.Dense(1)(x))


def by_our_own_measure(model):
    return saved_activation_bytes(model, X)


def by_the_compiler(model):
    """Temporary bytes of the compiled loss and its gradient."""
    import jax

    def loss(params, state, x):
        outputs, state = model.stateless_call(params, state, x, training=True)
        return (outputs**2).mean(), state

    params = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = step.lower(params, state, X).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def by_autograd(model):
    """All that autograd packs, parameters too, shared or not."""
    import torch

    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.nelement() * tensor.element_size()
        return tensor

    x = keras.ops.convert_to_tensor(X)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, training=True)
    return total


MEASURES = {
    "jax": (by_the_compiler,),  # which our own measure asks, too
    "tensorflow": (by_our_own_measure,),
    "torch": (by_our_own_measure, by_autograd),
}[BACKEND]
CASES = [(measure, (2, 8)) for measure in MEASURES]
if BACKEND == "torch":  # the others take minutes to trace and compile these
    CASES.append((MEASURES[0], (8, 64)))


@functools.cache
def kept(measure, depth, reversible):
    return measure(build(depth, reversible))


@pytest.mark.parametrize("measure, depths", CASES)
def test_pitfall_02_bytes_kept_do_not_grow_with_depth(measure, depths):
    few, many = (kept(measure, depth, True) for depth in depths)
    plain_few, plain_many = (kept(measure, depth, False) for depth in depths)
    assert plain_many > 3 * plain_few
    assert many - few < 0.02 * (plain_many - plain_few)
    # What is kept is there at all: at least the last outputs.
    assert X.nbytes <= few < plain_few
    if BACKEND == "torch" and measure is by_our_own_measure:
        assert few < 1.2 * X.nbytes  # nothing else


@pytest.mark.slow
@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the other backends are asked directly"
)
def test_pitfall_03_peak_of_a_tensorflow_process_does_not_grow_with_depth():
    for mode, (reversible, plain) in growth_of_peak().items():
        # 16 blocks, each with at least two streams of 16384 x 64 float32.
        assert plain > 16 * 2 * 4, mode
        assert reversible < 0.02 * plain, mode


def growth_of_peak():
    """MB a step takes with 18 blocks less what it takes with 2, by mode."""
    script = ROOT / "tests" / "autodiff" / "peak_memory.py"
    done = subprocess.run(
        [sys.executable, script, "2", "18"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # Freed memory goes back to the system at once: oneDNN's allocator
            # would keep what the first step took.
            "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {
        mode: [many - few for few, many in peaks]
        for mode, peaks in json.loads(done.stdout).items()
    }
