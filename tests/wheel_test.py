"""The wheel holds the package and works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="the same on each backend"
    ),
]


def run(*command, **options):
    return subprocess.run(
        [sys.executable, "-m", *command],
        check=True,
        capture_output=True,
        text=True,
        **options,
    ).stdout


def test_the_wheel_by_itself(tmp_path):
    # A copy: what an earlier build has left would go into the wheel.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "keras_efficient", source / "keras_efficient")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("pip", "wheel", str(source), "--no-deps", "-w", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"keras_efficient"}
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "keras_efficient").rglob("*.py")
    }
    site = str(tmp_path / "site")
    run("pip", "install", str(wheel), "--no-deps", "--target", site)
    environment = {**os.environ, "PYTHONPATH": site}
    options = {"cwd": tmp_path, "env": environment}
    printed = run("keras_efficient", "--version", **options)
    version = wheel.name.split("-")[1]
    assert printed.strip() == version
    printed = run("keras_efficient", "doctor", "--json", **options)
    assert f'"keras_efficient": "{version}"' in printed
