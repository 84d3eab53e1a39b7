"""Two processes of PyTorch: DTensors, and DistributedDataParallel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="what PyTorch has"
    ),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch = pytest.importorskip("torch")
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("PyTorch is built without gloo")
    folder = tmp_path_factory.mktemp("distribution")
    run = Path(__file__).with_name("torch_run.py")
    result = subprocess.run(
        [sys.executable, run, folder],
        env={
            **os.environ,
            "KERAS_BACKEND": "torch",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads((folder / "found.json").read_text())


def test_steps_on_dtensors_have_the_bits_of_one_process(found):
    """But for norms over parts, which are summed in another order."""
    assert len(found["differ"]) == 7
    assert not any(found["differ"].values()), found["differ"]


def test_each_rank_has_half_of_the_state(found):
    for name, part in found["bytes"].items():
        assert 0.5 <= part < 0.51, name


def test_what_is_not_supported_says_so(found):
    errors = found["errors"]
    assert "first axis only" in errors["axis"]
    assert "all of a tensor" in errors["matrix"]
    assert "blocks do not end where the parts do" in errors["blocks"]
    assert "exclude_layers" in errors["blocks"]
    assert "keeps the state of its blocks in slots" in errors["slots"]
    for name in ("partial", "plain gradient"):
        assert "divided as their variables" in errors[name]
    assert errors["alike"] == "no error"


def test_training_with_fully_shard(found):
    run = found["fully_shard"]
    assert run["one"] == pytest.approx(run["two"], rel=1e-3)
    assert run["one"][-1] < run["one"][0]
    assert 0.5 <= run["bytes"] < 0.51


def test_gradients_of_distributed_data_parallel(found):
    assert len(found["ddp"]) == 4
    for name, error in found["ddp"].items():
        assert error < 1e-5, name


def test_fit_by_way_of_distributed_data_parallel(found):
    """And without it: each process trains a model of its own."""
    assert len(found["fit"]) == 2
    for run in found["fit"].values():
        assert run["apart"] == 0 < 1e-4 < run["alone"]
    assert found["fit"]["SGD"]["error"] < 1e-5


def test_statistics_drift_apart_until_they_are_averaged(found):
    assert found["weights apart"] == 0
    assert found["statistics apart"] > 1e-4
    assert found["averaged apart"] == 0


def test_callbacks_decide_alike(found):
    assert found["pulls alike"]
    one, two = found["drops"]
    assert one == two and one
