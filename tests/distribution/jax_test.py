"""Under `keras.distribution` the steps are the same, and state is divided."""

import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.distribution import jax_run
from tests.optimizers.resumed_run import read

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="only JAX shards variables"
    ),
]
# What is left to XLA, which sums in another order there.
LEFT_TO_XLA = {
    "MicroAdam": ("odd", "bias"),
    "Adam8bit": ("odd", "bias"),
    "Lion8bit": ("bias",),
    "Muon8bit": tuple(jax_run.SHAPES),
    "LDAdam": tuple(jax_run.SHAPES),
}
each_run = pytest.mark.parametrize("name, dtype", jax_run.OPTIMIZERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All has run in one process, which has eight devices."""
    folder = tmp_path_factory.mktemp("distribution")
    result = subprocess.run(
        [sys.executable, jax_run.__file__, folder],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def steps(folder):
    found = read(folder / "steps.npz")

    def of(name, way, part, dtype="float32"):
        return found[f"{name}, {dtype}, {way}, {part}"]

    return of


@pytest.fixture(scope="module")
def fits(folder):
    return read(folder / "fit.npz")


def ways(name, dtype="float32"):
    return jax_run.OPTIMIZERS[name, dtype][1]


@each_run
def test_what_shards_step_on_has_the_same_bits(steps, name, dtype):
    expected = steps(name, "single", "values", dtype)
    for way in ways(name, dtype):
        actual = steps(name, way, "values", dtype)
        assert list(actual) == list(expected)
        for key, value in expected.items():
            if not any(p in key for p in LEFT_TO_XLA[name]):
                np.testing.assert_array_equal(actual[key], value, key)


@each_run
def test_steps_are_those_of_one_device_up_to_rounding(steps, name, dtype):
    """Only LDAdam puts sums into codes; few are near the middle of two."""
    expected = steps(name, "single", "values", dtype)
    # QR turns the subspace by what a sum was rounded.
    share, tolerance = (0.02, 1e-2) if name == "LDAdam" else (0.0, 1e-5)
    for way in ways(name, dtype):
        for key, value in expected.items():
            actual = steps(name, way, "values", dtype)[key]
            difference = np.abs(actual.astype("float64") - value)
            rounding = tolerance * np.abs(value).max()
            rounding *= value.dtype == "float32"
            assert np.mean(difference > rounding) <= share, (way, key)


@each_run
def test_files_are_those_of_one_device(steps, name, dtype):
    single = steps(name, "single", "files", dtype)
    shapes = {key: x.shape for key, x in single.items()}
    for way in ways(name, dtype):
        found = steps(name, way, "files", dtype)
        assert {key: x.shape for key, x in found.items()} == shapes
    if name == "MicroAdam":
        assert (10, 16 * 2048 // 256, 3) in shapes.values()


def bytes_of(steps, name, way, parameter):
    """Return the bytes of state of a parameter on a device."""
    values = steps(name, way, "values")
    return sum(
        math.prod(shape) * min(values[key].itemsize, 2)
        for key, shape in steps(name, way, "shards").items()
        if f" {parameter}_" in key and not key.endswith("written")
    )


@pytest.mark.parametrize(
    "name", ["MicroAdam", "Adam8bit", "Lion8bit", "LDAdam"]
)
def test_bytes_on_a_device(steps, name):
    """State falls by the number of shards; with `zero`, of devices."""
    parts = {"model": 4, "model, zero": 8, "data": 1, "data, zero": 8}
    for way in ways(name):
        names = jax_run.OPTIMIZERS[name, "float32"][2]
        for parameter in ("columns", "rows", "heads", "misaligned"):
            if parameter not in names:
                continue
            single = bytes_of(steps, name, "single", parameter)
            part = single / bytes_of(steps, name, way, parameter)
            # A subspace, which has no side of 8 times a multiple of 16.
            least = 0.8 if name == "LDAdam" else 1.0
            assert least * parts[way] <= part <= parts[way], (way, parameter)
        if "model" in way:
            single = bytes_of(steps, name, "single", "both")
            assert single >= 0.8 * 8 * bytes_of(steps, name, way, "both")


def test_what_fits_no_shards_is_on_every_device(steps):
    """It is right all the same: the other tests compare it, too."""
    for way in ("model", "data, zero"):
        shards = steps("MicroAdam", way, "shards")
        (shape,) = [s for key, s in shards.items() if "odd_indices" in key]
        assert tuple(shape) == (10, 17, 3)


def test_plain_state_is_divided_as_its_parameter(steps):
    for way, size in (("single", 128), ("model", 32), ("data", 128)):
        shards = steps("Adam8bit", way, "shards")
        found = [tuple(s) for key, s in shards.items() if "bias_" in key]
        assert found == [(size,), (size,)]


def test_a_training_goes_on_with_another_number_of_devices(fits):
    expected = fits["whole"]["losses"]
    for name in ("8 to 1", "1 to 8"):
        losses = fits[name]["losses"]
        # A run that was cut in two has those of its second part.
        np.testing.assert_allclose(
            losses, expected[-len(losses) :], rtol=2e-3, err_msg=name
        )
        assert len(losses) == 3


def test_callbacks_decide_as_on_one_device(fits):
    one, eight = fits["single"], fits["data"]
    assert len(one["drops"])
    np.testing.assert_array_equal(eight["drops"], one["drops"])
    np.testing.assert_array_equal(eight["pulls"], one["pulls"])


def test_memory_report_counts_what_a_device_has(fits):
    parameters = 2 * 64 * 1024
    assert 0.9 * parameters / 8 < fits["data"]["report"] < 2 * parameters / 8


def test_config_reports_of_shards(fits):
    reasons = [str(x) for x in fits["reports"].values()]
    alone, divided = reasons[: len(reasons) // 2], reasons[len(reasons) // 2 :]
    assert not any("shard_map" in text for text in alone)
    assert "8 devices" in divided[0] and "jax.shard_map" in divided[0]
