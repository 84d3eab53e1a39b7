"""Every sub-layer of the table, recomputed: all is as without."""

import numpy as np
import pytest

from tests.layers.awkward import AWKWARD
from tests.layers.native import NATIVE
from tests.layers.row import BACKEND
from tests.layers.row import MODES
from tests.layers.row import build
from tests.layers.row_steps import fitted
from tests.layers.row_steps import two_steps
from tests.layers.table import KERAS
from tests.layers.table import TABLE

HARD = {**AWKWARD, **NATIVE}
# Of the engine, which depends on the mode. (TensorFlow cannot compile the
# gradient of a loop, `"branches"`.)
ENGINE = (
    "LSTM stateful",
    "SpectralNormalization",
    "LoRA in a frozen parent",
    "tied head",
    "tensor around",
    "metric",
    "centers by a moving average",
    "leaves a tensor",
    "adds losses",
    "generator around",
    "mask in a coupling",
    "all kinds of arguments",
    "noisy",
)
# What runs in which mode without a compiler, and by `fit`: all on PyTorch,
# which compiles nothing; of Keras' layers half on JAX, half on TensorFlow, and
# so in runs of what is hard. The loop of `scan` is that of JAX, where an
# operation outside of a program takes as long as a program.
UNTRAINED = [name for name in HARD if not TABLE[name].trains("fit")]
if BACKEND == "torch":
    EAGER = dict.fromkeys(MODES[:2], TABLE)
    FIT = dict.fromkeys(MODES[:2], ENGINE)
elif BACKEND == "tensorflow":
    EAGER = dict.fromkeys(MODES[:2], (*ENGINE, *UNTRAINED))
    FIT = {
        "recompute": (*[*KERAS][::2], *HARD),
        "coupling": (*ENGINE, *[*HARD][1::2]),
    }
else:
    EAGER = {"recompute": UNTRAINED}
    FIT = {
        "recompute": (*[*KERAS][1::2], *HARD),
        "coupling": (*ENGINE, *[*HARD][::2]),
        # (The loop refuses the first of them, which has a state.)
        "scan": (*ENGINE[1:], *[*HARD][1::2]),
    }
PARTS = 4


def rows(names, mode, refused=False):
    """Names of rows that there are in a mode on this backend."""
    return [
        name
        for name in dict.fromkeys(names)
        if BACKEND in TABLE[name].only
        and (mode == "recompute" or TABLE[name].in_run is not None)
        and bool(TABLE[name].refusal(mode)) == refused
    ]


def fit_rows(mode, names):
    names = rows(names, mode)
    return [name for name in names if TABLE[name].trains(mode, "fit")]


def wrapped(names, mode):
    """Rows with their wrappers, but for those that the loop refuses.

    (Blocks without a configuration, or that read what is not their own.)
    """
    found = {}
    for name in names:
        try:
            found[name] = build(TABLE[name], mode, wrapped=True)
        except ValueError as error:
            if mode != "scan" or "`scan=False`" not in str(error):
                raise
    return found


def differences(ours, theirs, tolerance):
    """What differs, by name, with the error relative to the largest value."""
    found = {}
    if ours.keys() != theirs.keys():
        found["names"] = set(ours) ^ set(theirs)
    for name in set(ours) & set(theirs):
        a, b = ours[name], theirs[name]
        if isinstance(b, dict):
            found.update(differences(a, b, tolerance))
        elif isinstance(b, list):
            if a != b:
                found[name] = f"{a} is not {b}"
        elif not (error := relative_error(a, b)) <= tolerance:
            found[name] = error
    return found


def relative_error(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.shape} {a.dtype} is not {b.shape} {b.dtype}"
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    size = np.max(np.abs(b), initial=1e-2)
    return np.max(np.abs(a - b), initial=0.0) / size


def parameters(names_of, **options):
    return pytest.mark.parametrize(
        ("mode", "name"),
        [
            pytest.param(mode, name, id=f"{mode}-{name}")
            for mode, names in names_of.items()
            for name in rows(names, mode, **options)
        ],
    )


def check_fit(names, mode, jit_compile=BACKEND == "jax"):
    """Compare rows in one program with those without their wrappers."""
    cases = wrapped(names, mode)
    plain = [build(TABLE[name], mode, wrapped=False) for name in cases]
    ours = fitted([*cases.values()], jit_compile)
    if BACKEND == "tensorflow" and not jit_compile:
        # The numbers of a graph, random ones included, before it is traced.
        theirs = [two_steps(case)["moved"] for case in plain]
    else:
        theirs = fitted(plain, jit_compile)
    failed = {}
    for name, a, b in zip(cases, ours, theirs, strict=True):
        if found := differences(a, b, TABLE[name].tolerance):
            failed[name] = found
    assert cases and not failed


@parameters(EAGER)
def test_two_steps_equal_those_of_the_plain_layer(mode, name):
    row = TABLE[name]
    ours, plain = (two_steps(build(row, mode, w)) for w in (True, False))
    assert not differences(ours, plain, row.tolerance)


@parameters(dict.fromkeys(FIT, HARD), refused=True)
def test_what_cannot_be_captured_is_refused_at_the_first_call(mode, name):
    row = TABLE[name]
    with pytest.raises((TypeError, ValueError), match=row.refusal(mode)):
        two_steps(build(row, mode, wrapped=True))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", FIT)
def test_fit_equals_that_of_the_plain_layers(mode, part):
    check_fit(fit_rows(mode, FIT[mode])[part::PARTS], mode)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Its second compiler.")
@pytest.mark.parametrize("mode", FIT)
def test_fit_equals_that_of_the_plain_layers_under_xla(mode):
    check_fit(fit_rows(mode, ENGINE), mode, jit_compile=True)
