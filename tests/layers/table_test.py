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

# The other backends run the blocks one by one.
modes = MODES if BACKEND == "jax" else MODES[:2]
# On JAX each operation is compiled by itself if there is no compiler around.
EAGER = {**AWKWARD, **NATIVE} if BACKEND == "jax" else TABLE
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


def fit_rows(mode):
    return [
        name
        for name in rows(TABLE, mode)
        if TABLE[name].fit and TABLE[name].trains(mode)
    ]


@functools.cache
def plain(name, mode):
    """What two steps of the plain layer give."""
    return two_steps(build(TABLE[name], mode, wrapped=False))


def fit(names, mode, wrapped, jit_compile=BACKEND == "jax"):
    if BACKEND == "tensorflow" and not wrapped:  # there, it is the same
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


def parameters(table, **options):
    return pytest.mark.parametrize(
        ("mode", "name"),
        [
            pytest.param(mode, name, id=f"{mode}-{name}")
            for mode in modes
            for name in rows(table, mode, **options)
        ],
    )


@parameters(EAGER)
def test_two_steps_equal_those_of_the_plain_layer(mode, name):
    ours = two_steps(build(TABLE[name], mode, wrapped=True))
    assert not differences(ours, plain(name, mode), TABLE[name].tolerance)


@parameters(TABLE, refused=True)
def test_what_cannot_be_captured_is_refused_at_the_first_call(mode, name):
    row = TABLE[name]
    with pytest.raises((TypeError, ValueError), match=row.refusal(mode)):
        two_steps(build(row, mode, wrapped=True))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", modes)
def test_fit_equals_that_of_the_plain_layers(mode, part):
    names = fit_rows(mode)[part::PARTS]
    failed = {}
    for name, (ours, theirs) in zip(names, fit_both(names, mode)):
        if found := differences(ours, theirs, TABLE[name].tolerance):
            failed[name] = found
    assert not failed
