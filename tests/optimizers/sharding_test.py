"""Under `keras.distribution` the steps are the same, and state is divided."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.optimizers import sharded_run
from tests.optimizers.resumed_run import read

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="only JAX shards variables"
    ),
]
each_optimizer = pytest.mark.parametrize("name", sharded_run.OPTIMIZERS)

# What a device has of parameters under `ModelParallel`; each is divided by 4.
PARAMETERS = {
    "embedding_embeddings": ((128, 64), (128, 16)),
    "wide_kernel": ((64, 128), (64, 32)),
    "wide_bias": ((128,), (32,)),
    "tall_kernel": ((64, 128), (16, 128)),
    "odd_kernel": ((64, 65), (16, 65)),
}
SCALES = {
    "embedding_embeddings": (128, 2),
    "wide_kernel": (64, 4),
    "tall_kernel": (16, 4),
    "odd_kernel": (130,),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A function of the name of an optimizer; all have run in one process."""
    folder = tmp_path_factory.mktemp("sharded")
    result = subprocess.run(
        [sys.executable, sharded_run.__file__, folder],
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
    assert result.returncode == 0, result.stderr
    return lambda name: read(folder / f"{name}.npz")


@pytest.mark.parametrize("kind", ["data", "model"])
@each_optimizer
def test_steps_are_those_of_one_device(results, name, kind):
    """Gradients are the same to the bit; see `sharded_run.weighted_sum`.

    So float32 differs by how XLA compiles and sums, and codes by nothing.
    Only LDAdam puts sums into codes; few are close enough to the middle of
    two for that to matter.
    """
    expected, actual = results(name)["single"], results(name)[kind]
    assert list(actual) == list(expected)
    share = 0.01 if name.startswith("LDAdam") else 0.0
    for key, value in expected.items():
        rounding = 1e-5 * np.abs(value).max() if value.dtype == "float32" else 0
        difference = np.abs(actual[key].astype("float64") - value)
        assert np.mean(difference > rounding) <= share, key


@each_optimizer
def test_data_parallel_has_all_on_every_device(results, name):
    shapes = {key: v.shape for key, v in results(name)["single"].items()}
    for key, (devices, *shard) in results(name)["data shards"].items():
        assert (devices, *shard) == (8, *shapes[key]), key


@each_optimizer
def test_state_is_divided_as_its_parameter(results, name):
    """What has its shape, or groups of its entries; the rest is replicated."""
    shapes = {key: v.shape for key, v in results(name)["single"].items()}
    divided = set()
    for key, (devices, *shard) in results(name)["model shards"].items():
        assert devices == 8, key
        parameter = next((p for p in PARAMETERS if f" {p}_" in key), None)
        if parameter is None:
            continue
        expected = shapes[key]
        shape, part = PARAMETERS[parameter]
        if key.endswith("_scale"):
            expected = SCALES[parameter]
        elif expected == shape:
            expected = part
            divided.add(parameter)
        assert tuple(shard) == expected, key
    assert "wide_bias" in divided  # small enough for plain moments


@each_optimizer
def test_parameters_are_divided(results, name):
    """If they were not, that their state is as they are would say nothing."""
    shards = list(results(name)["model shards"].values())
    assert [tuple(s[1:]) for s in shards[: len(PARAMETERS)]] == [
        part for _, part in PARAMETERS.values()
    ]
