"""Checks of optimizers for `gpu_checks.py`: kernels and the portable form.

Here they are compared as users meet them, where the last digit of a sum or of
a scale turns a few codes over. Bit for bit `tests/kernels` compares them.
"""

import keras
import numpy as np

from benchmarks.gpu_rows import at_most
from benchmarks.gpu_rows import skipped
from benchmarks.optimizers_worker import KerasContender
from keras_efficient import config
from keras_efficient import optimizers

NAMES = ("MicroAdam", "Adam8bit", "AdamW8bit", "Lion8bit")
SHAPES = ((300, 257), (4096,), (3, 3, 64, 65), (512, 64), (7,))
STEPS = {"cuda": 12, "cpu": 4}  # 12 are more than the window of MicroAdam
RATE = 1e-3
MODE = {"tensorflow": "tensorflow-xla"}.get(
    keras.config.backend(), keras.config.backend()
)


class Problem:
    """Parameters, and gradients that are others at each step."""

    def __init__(self, dtype):
        self.mode = MODE
        self.dtype = dtype
        self.rng = np.random.default_rng(0)
        self.variables = [
            keras.Variable(0.02 * value, dtype=dtype) for value in self.draw()
        ]
        self.next_gradients()
        if MODE == "jax":
            self.values = [variable.value for variable in self.variables]

    def draw(self):
        return [self.rng.standard_normal(shape, "float32") for shape in SHAPES]

    def next_gradients(self):
        self.gradients = [
            keras.ops.convert_to_tensor(value, self.dtype)
            for value in self.draw()
        ]


def kernels(device):
    """Kernels of optimizers take the steps of the portable form"""
    chosen = next(
        row
        for row in config.report(verbose=0)
        if (row["framework"], row["device"]) == (keras.config.backend(), device)
    )
    if chosen["kernel"] == "portable":
        yield skipped(kernels.__doc__, chosen["reason"])
        return
    for name in NAMES if device == "cuda" else NAMES[:2]:
        for dtype, share, error in (
            ("float32", 1e-4, 1e-3),
            # Of gradients that are equal, each form takes any to its window.
            ("bfloat16", 3e-2, 1e-1),
        ):
            ours, theirs = (
                run(name, dtype, choice, STEPS[device])
                for choice in ("auto", "off")
            )
            what = f"{name}, {dtype}, {chosen['kernel']} and portable"
            unequal = ours["codes"] != theirs["codes"]
            yield at_most(f"{what}: codes that differ", unequal.mean(), share)
            apart = relative_error(ours["moves"], theirs["moves"])
            yield at_most(f"{what}: error of all moves", apart, error)


def portable_form(device):
    """The portable form gives on the GPU what it gives on the CPU"""
    if device == "cpu":
        return
    for name in NAMES:
        here = run(name, "float32", "off", STEPS[device])
        with keras.device("cpu"):
            there = run(name, "float32", "off", STEPS[device])
        what = f"{name}, portable, GPU and CPU: error of all moves"
        yield at_most(what, relative_error(here["moves"], there["moves"]), 1e-2)


def run(name, dtype, choice, steps):
    """Take steps; return the codes of the state, and how far weights moved."""
    problem = Problem(dtype)
    before = to_floats(problem.variables)
    optimizer = getattr(optimizers, name)(RATE)
    optimizer.build(problem.variables)
    contender = KerasContender(optimizer, problem, choice)
    for _ in range(steps):
        contender.step()
        problem.next_gradients()
    state = getattr(optimizer, "benchmark_state", optimizer.variables)
    after = to_floats(getattr(problem, "values", problem.variables))
    state = [keras.ops.convert_to_numpy(value).ravel() for value in state]
    codes = [array for array in state if array.dtype.kind in "iu"]
    return {
        "codes": np.concatenate(codes).astype("int64"),
        "moves": np.concatenate([b - a for a, b in zip(before, after)]),
    }


def to_floats(values):
    return [
        keras.ops.convert_to_numpy(value).astype("float32").ravel()
        for value in values
    ]


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


optimizer_checks = (kernels, portable_form)
