import sys

import keras
import pytest

from keras_efficient import config
from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import support


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", None)
    monkeypatch.delenv(policy.VARIABLE, raising=False)


def row(framework, device):
    rows = config.report()
    return next(
        row
        for row in rows
        if (row["framework"], row["device"]) == (framework, device)
    )


def test_set_kernels(monkeypatch):
    assert config.kernels() == "auto"
    monkeypatch.setenv("KERAS_EFFICIENT_KERNELS", "off")
    assert config.kernels() == "off"
    config.set_kernels("auto")
    assert config.kernels() == "auto"
    for value in ("on", None, True):
        with pytest.raises(ValueError, match="`kernels` must be one of 'auto'"):
            config.set_kernels(value)


def test_report(capsys):
    pytest.importorskip("numba")
    backend = keras.config.backend()
    if backend not in ("jax", "tensorflow", "torch"):
        pytest.skip("no kernels")
    assert row(backend, "cpu") == {
        "framework": backend,
        "device": "cpu",
        "kernel": "numba",
        "reason": "",
    }
    assert row("jax", "cuda")["kernel"] == "portable"
    printed = capsys.readouterr().out
    assert "kernels: auto" in printed
    assert "numba" in printed and backend in printed


def test_report_tells_why_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    support.why_not_installed.cache_clear()
    assert "numba cannot be imported" in row("torch", "cpu")["reason"]
    support.why_not_installed.cache_clear()
    config.set_kernels("off")
    assert row("torch", "cpu")["kernel"] == "portable"
    assert row("torch", "cpu")["reason"] == "kernels are off"
    # By name it tells, too, and does not raise.
    monkeypatch.setattr(policy, "_chosen", "triton")
    assert "CUDA" in row("torch", "cpu")["reason"]


def test_report_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    config.set_kernels("off")
    config.report()
    printed = capsys.readouterr().out
    assert printed.startswith("kernels: off\njax  cpu  portable  kernels are")
