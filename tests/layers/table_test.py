"""Every sub-layer of the table, recomputed: all is as without."""

import functools

import numpy as np
import pytest

from tests.layers.awkward import AWKWARD
from tests.layers.native import NATIVE
from tests.layers.row import BACKEND
from tests.layers.row import MODES
from tests.layers.row import build
from tests.layers.row_steps import fitted
from tests.layers.row_steps import two_steps
from tests.layers.table import TABLE

HARD = {**AWKWARD, **NATIVE}
# What runs in which mode without a compiler, and by `fit`. The loop of `scan`
# is that of JAX, where a program takes long to compile, and an operation that
# is in none, too.
EAGER = dict.fromkeys(MODES[:2], TABLE)
FIT = dict.fromkeys(MODES[:2], TABLE)
if BACKEND == "jax":
    EAGER = {"recompute": HARD}
    FIT = {"recompute": TABLE, "coupling": HARD, "scan": TABLE}
# (TensorFlow cannot compile the gradient of a loop, `"branches"`.)
XLA = (
    "LSTM stateful",
    "SpectralNormalization",
    "LoRA in a frozen parent",
    "tied head",
    "tensor around",
    "metric",
    "centers by a moving average",
    "adds losses",
    "generator around",
    "mask in a coupling",
    "all kinds of arguments",
    "noisy",
)
PARTS = 4


def rows(table, mode, refused=False):
    """Names of rows that there are in a mode on this backend."""
    return [
        name
        for name, row in table.items()
        if BACKEND in row.only
        and (mode == "recompute" or row.in_run is not None)
        and bool(row.refusal(mode)) == refused
    ]


def fit_rows(mode, table, *how):
    names = rows(table, mode)
    return [name for name in names if TABLE[name].trains(mode, "fit", *how)]


@functools.cache
def plain(name, mode):
    """What two steps of the plain layer give."""
    return two_steps(build(TABLE[name], mode, wrapped=False))


def fit(names, mode, wrapped, jit_compile=BACKEND == "jax"):
    if BACKEND == "tensorflow" and not (wrapped or jit_compile):
        # A graph gives the same numbers, random ones included; XLA does not.
        return [plain(name, mode)["moved"] for name in names]
    cases = [build(TABLE[name], mode, wrapped) for name in names]
    return fitted(cases, jit_compile)


def fit_both(names, mode, **options):
    """Pairs of results, ours and those of the plain layer, or an error."""
    try:
        ours = fit(names, mode, wrapped=True, **options)
        return list(zip(ours, fit(names, mode, wrapped=False, **options)))
    except Exception as error:
        if len(names) > 1:  # whose is it?
            return [p for n in names for p in fit_both([n], mode, **options)]
        return [({"error": f"{type(error).__name__}: {error}"}, None)]


def differences(ours, theirs, tolerance):
    """What differs, by name, with the error relative to the largest value."""
    if "error" in ours:
        return ours
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


def parameters(tables, **options):
    return pytest.mark.parametrize(
        ("mode", "name"),
        [
            pytest.param(mode, name, id=f"{mode}-{name}")
            for mode, table in tables.items()
            for name in rows(table, mode, **options)
        ],
    )


def check_fit(names, mode, **options):
    failed = {}
    for name, (ours, theirs) in zip(names, fit_both(names, mode, **options)):
        # Blocks without a configuration, or that read what is not their own.
        if mode == "scan" and "`scan=False`" in str(ours.get("error")):
            continue
        if found := differences(ours, theirs, TABLE[name].tolerance):
            failed[name] = found
    assert not failed


@parameters(EAGER)
def test_two_steps_equal_those_of_the_plain_layer(mode, name):
    ours = two_steps(build(TABLE[name], mode, wrapped=True))
    assert not differences(ours, plain(name, mode), TABLE[name].tolerance)


@parameters(FIT, refused=True)
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
    names = fit_rows(mode, {name: TABLE[name] for name in XLA})
    check_fit(names, mode, jit_compile=True)
