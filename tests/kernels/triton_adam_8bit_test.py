"""The Triton kernel of the 8-bit Adam step against the portable form."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_efficient.kernels.ffi import xla_version

SCRIPT = Path(__file__).with_name("triton_adam_8bit_run.py")

if keras.config.backend() != "torch":
    pytest.skip("Triton kernels are for PyTorch", allow_module_level=True)
if xla_version.package_folder("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

torch = pytest.importorskip("torch")


def run(what):
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    environment.pop("TRITON_INTERPRET", None)
    process = subprocess.run(
        [sys.executable, str(SCRIPT), what],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.quick
def test_same_as_portable():
    run("interpret")


def test_compiles_for_an_h200():
    run("compile")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_as_portable_on_cuda():
    run("cuda")
