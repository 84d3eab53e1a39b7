"""A run that is cut in two, or goes on elsewhere, is the run in one piece."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.compilers import ENVIRONMENT
from tests.compilers import optimize_less
from tests.optimizers import resumed_run
from tests.optimizers.table import BACKEND
from tests.optimizers.table import TABLE
from tests.optimizers.table import each_optimizer

ROOT = Path(__file__).resolve().parents[2]
# Once around: what goes from each to the next goes from each to each.
BACKENDS = ("jax", "tensorflow", "torch")
OTHER = dict(zip(BACKENDS, (*BACKENDS[1:], BACKENDS[0])))[BACKEND]
# There each third of the optimizers goes on; the others are loaded only.
GO_ON = [*TABLE][BACKENDS.index(BACKEND) :: 3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def in_one_piece(folder):
    """What each optimizer comes to without a break, by name."""
    if BACKEND == "jax":  # as in the processes that take up the runs
        optimize_less(True)
    return {name: resumed_run.start(name, folder) for name in TABLE}


@pytest.fixture(scope="module")
def finish(in_one_piece, folder):
    """Return a function that takes up all runs in one new process."""
    done = set()

    def finish(backend, name):
        if backend not in done:
            own = ["keras", "backup"]
            take_up(folder, backend, own if backend == BACKEND else GO_ON)
            done.add(backend)
        return resumed_run.read(folder / f"{name}_{backend}.npz")

    return finish


def take_up(folder, backend, sources):
    result = subprocess.run(
        [sys.executable, resumed_run.__file__, folder, *sources],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(ROOT),
            **ENVIRONMENT,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def check_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].tobytes() == value.tobytes(), name


def check_state_is_there(values):
    """Keras skips the state, with a warning, where it does not fit."""
    (iterations,) = (v for k, v in values.items() if k.endswith("iteration"))
    assert iterations == resumed_run.STEPS
    ends = "codes", "momentum"
    state = [v for name, v in values.items() if name.endswith(ends)]
    assert state and all(v.any() for v in state)


@each_optimizer
def test_keras_file_goes_on_bit_for_bit(in_one_piece, finish, name):
    actual, expected = finish(BACKEND, name), in_one_piece[name]
    check_state_is_there(actual["half"])
    check_same_bits(actual["half"], expected["half"])
    check_same_bits(actual["whole"], expected["whole"])


@each_optimizer
def test_killed_fit_goes_on_bit_for_bit(in_one_piece, finish, name):
    """From the end of the last epoch, by `BackupAndRestore`."""
    check_same_bits(
        finish(BACKEND, name)["backup"], in_one_piece[name]["whole"]
    )


@each_optimizer
def test_other_backend_has_the_state_and_goes_on(in_one_piece, finish, name):
    actual, expected = finish(OTHER, name), in_one_piece[name]
    check_state_is_there(actual["half"])
    assert list(actual["half"]) == list(expected["half"])
    for key, value in expected["half"].items():
        np.testing.assert_array_equal(actual["half"][key], value, err_msg=key)
    if name not in GO_ON:
        return
    # Where two entries are next to each other in size, rounding decides which
    # of them enters MicroAdam's window, and QR turns LDAdam's subspace where
    # the gradient has no direction that stands out.
    tolerance = 2e-4 if name in ("MicroAdam", "LDAdam") else 1e-5
    np.testing.assert_allclose(
        actual["losses"][""], expected["losses"][""], rtol=tolerance
    )
