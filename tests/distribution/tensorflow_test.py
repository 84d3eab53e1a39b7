"""Strategies of TensorFlow: mirrored devices, and two processes."""

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
        keras.config.backend() != "tensorflow", reason="what TensorFlow has"
    ),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    run = Path(__file__).with_name("tensorflow_run.py")
    result = subprocess.run(
        [sys.executable, run, folder],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", ["Keras", "MicroAdam", "Adam8bit"])
def test_two_replicas_train_as_one_device(found, name):
    assert found["replicas"] == 2
    one, two = found[name]
    assert two == pytest.approx(one, rel=1e-4)
    assert one[-1] < one[0]


def test_a_program_of_several_devices_is_refused(found):
    """TensorFlow refuses it, too, for Keras' own optimizers."""
    assert "located in device" in found["Keras jit"]
    assert "jit_compile=False" in found["MicroAdam jit"]
    assert "2 replicas" in found["MicroAdam jit"]


def test_one_device_goes_on_with_what_two_began(found):
    one, _ = found["MicroAdam"]
    assert found["resumed"] == pytest.approx(one[1:], rel=1e-4)


def test_callbacks_decide_as_on_one_device(found):
    one, two = found["decisions"]
    assert one == two
    assert len(one) > 2  # AutoDrop has dropped


def test_two_processes(found):
    workers = found["workers"]
    if isinstance(workers, str):
        pytest.skip(f"no two processes: {workers}")
    one, two = (worker["losses"] for worker in workers)
    assert one == two
    assert isinstance(one, list) and one[-1] < one[0]
    assert all(worker["replicas"] == 2 for worker in workers)
