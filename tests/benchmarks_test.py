"""The search and the processes of `end_to_end`, and the rows of `peers`."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.marks import once

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def largest(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from benchmarks.end_to_end import largest

    return largest


@once
@pytest.mark.parametrize(
    "peak_at",
    [
        lambda value: 7 * value + 20,
        lambda value: value**2 + 3 * value,
        lambda value: value**4 / 3000,
        lambda value: 40 + (value >= 48) * 1000,
    ],
    ids=["line", "parabola", "steep", "jump"],
)
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("budget", [100, 2020, 10_000])
def test_the_largest_that_fits(largest, peak_at, step, budget):
    tried = []

    def measured(value):
        tried.append(value)
        return peak_at(value)

    found = largest(measured, 8, step, budget, limit=800)
    fits = [v for v in range(8, 801, step) if peak_at(v) <= budget]
    assert found == max(fits)
    assert len(tried) < 16


@once
def test_nothing_fits(largest):
    with pytest.raises(RuntimeError, match="40 bytes at the smallest size, 4"):
        largest(lambda value: 10 * value, 4, 1, 39, limit=None)


@pytest.mark.slow
@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="a process chooses its backend"
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_reversible_is_deeper_in_the_same_bytes(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "end_to_end"]
    command += "--backend torch --network convolutional --goal deepest".split()
    command += "--contender plain --contender reversible --limit 2".split()
    command += "--steps 2 --budget 0.08 --batch-size 8".split()
    command += ["--output", file, "--figure", tmp_path / "figure.png"]
    subprocess.run(command, check=True, capture_output=True)
    plain, reversible = json.loads(file.read_text())
    assert tmp_path.joinpath("figure.png").stat().st_size > 10_000
    assert plain["peak"] <= 0.08 * 2**30
    assert not plain["at limit"]
    assert reversible["peak"] <= 0.08 * 2**30
    assert reversible["depth"] == 2 * plain["depth"]
    assert reversible["parameters"] > 1.9 * plain["parameters"]


@once
def test_peers_are_compared_or_skipped(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from benchmarks import peers
    from benchmarks import peers_worker

    options = argparse.Namespace(device="cpu", scale=1 / 16, steps=1)
    rows = peers_worker.run("resampling", options)
    ours, theirs = rows["keras_efficient"], rows["iunets"]
    assert ours["values"] < 1e-5 and ours["gradients"] < 1e-4
    assert rows["PyTorch"]["values"] == 0.0
    assert "values" in theirs or theirs["why"].startswith("skipped: No module")
    assert peers.tabulate("resampling", rows).row_count == 3
