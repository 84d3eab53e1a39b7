"""Where Numba does not work as it should, `auto` goes on and says why."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from keras_efficient import config
from keras_efficient import optimizers
from keras_efficient.kernels import numba_ffi
from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import cache
from keras_efficient.kernels.ffi import support
from keras_efficient.ops import dispatch

BACKEND = keras.config.backend()


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", None)
    monkeypatch.setattr(policy, "_failed", {})
    monkeypatch.setattr(cache, "_problem", None)
    monkeypatch.setattr(cache, "_dropped", set())
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # beside the source
    monkeypatch.delenv(policy.VARIABLE, raising=False)
    support.why_not_installed.cache_clear()
    yield
    support.why_not_installed.cache_clear()


def is_here(row):
    return (row["framework"], row["device"]) == (BACKEND, "cpu")


KERNEL = """
import numba

@numba.njit(cache=True)
def one(x):
    return x * 0 + 1

def wrong(x):
    x[0] = x.no_such_attribute

def add_one(x):
    for i in numba.prange(x.size):
        x[i] += one(x[i])
"""


def function_in(folder):
    path = folder / "kernel_on_disk.py"
    path.write_text(KERNEL)
    spec = importlib.util.spec_from_file_location("kernel_on_disk", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_on_disk"] = module
    spec.loader.exec_module(module)
    return module


def run(folder):
    """Compile anew, or read what is on disk."""
    kernel = numba_ffi(function_in(folder).add_one, in_place="x", parallel=True)
    assert kernel(np.zeros(3, "float32")).tolist() == [1, 1, 1]
    return kernel.numba_kernel.dispatcher().stats


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_a_broken_file_of_the_cache_is_dropped(ending, damage, tmp_path):
    run(tmp_path)
    assert sum(run(tmp_path).cache_hits.values()) == 1
    files = [x for x in tmp_path.rglob("*") if x.suffix == ending]
    assert len(files) == 2  # also of the function that it calls
    for file in files:
        content = file.read_bytes()
        file.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "empty": b"",
                "noise": bytes(reversed(content)),
            }[damage]
        )
    assert not sum(run(tmp_path).cache_hits.values())
    assert sum(run(tmp_path).cache_hits.values()) == 1


def test_an_error_of_the_user_drops_nothing(tmp_path):
    run(tmp_path)
    kernel = numba_ffi(function_in(tmp_path).wrong, in_place="x")
    with pytest.raises(Exception, match="no_such_attribute"):
        kernel(np.zeros(3, "float32"))
    assert sum(run(tmp_path).cache_hits.values()) == 1


SCRIPT = """
import json, sys, tempfile
{before}
from keras_efficient.__main__ import main
assert main(["doctor", "--json"]) == 0
"""


def doctor(before="", **environment):
    """Return the row of the backend on the CPU, in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout[result.stdout.index("{") :])
    (row,) = [row for row in found["kernels"] if is_here(row)]
    return row


@pytest.mark.skipif(BACKEND != "torch", reason="no framework matters")
@pytest.mark.parametrize(
    "before, environment, reason",
    [
        (
            "",
            {"NUMBA_THREADING_LAYER": "no such layer"},
            "cannot compile and run kernels (ValueError: The threading layer",
        ),
        (
            # A package that is there, without its library.
            "sys.path.insert(0, {folder!r})\n",
            {},
            "cannot be loaded (OSError: Could not find",
        ),
    ],
)
def test_doctor_tells_why(before, environment, reason, tmp_path):
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text(
        "raise OSError('Could not find shared object file')"
    )
    row = doctor(before.format(folder=str(tmp_path)), **environment)
    assert row["kernel"] == "portable"
    assert reason in row["reason"]


def test_kernels_without_a_cache(monkeypatch):
    """Those that kernels are made of, too."""
    from keras_efficient.kernels.cpu.jit import jit

    monkeypatch.setattr(
        "tempfile.TemporaryFile",
        lambda *_, **__: (_ for _ in ()).throw(OSError),
    )

    @jit
    def double(x):
        return 2 * x

    assert double(2) == 4
    (row,) = [row for row in config.report(verbose=0) if is_here(row)]
    assert row["kernel"] == "numba"
    assert "anew in each process: cannot cache function" in row["reason"]


def variable():
    return keras.Variable(np.ones((80, 80), "float32"))


def step(optimizer, x):
    gradient = keras.ops.ones((80, 80))
    optimizer.apply([gradient], [x])
    return keras.ops.convert_to_numpy(x)


def test_a_kernel_that_fails_is_given_up_once(monkeypatch):
    def fail(rows, arguments):
        raise OSError("no registers are left")

    class Broken:
        do_steps = staticmethod(fail)

    real = dispatch.importlib.import_module
    monkeypatch.setattr(
        dispatch.importlib,
        "import_module",
        lambda name, *rest: (
            Broken if ".adam_8bit" in name else real(name, *rest)
        ),
    )
    x, optimizer = variable(), optimizers.Adam8bit(0.1)
    with pytest.warns(UserWarning, match="numba .*OSError: no registers"):
        first = step(optimizer, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        second = step(optimizer, x)
    assert abs(first - 0.9).max() < 1e-3 and abs(second - 0.8).max() < 1e-3
    (row,) = [row for row in config.report(verbose=0) if is_here(row)]
    assert row["kernel"] == "portable" and "registers" in row["reason"]
    # By name: the error itself, and nothing has changed.
    config.set_kernels("numba")
    with pytest.raises(Exception, match="registers"):
        optimizers.Adam8bit(0.1).apply([keras.ops.ones((80, 80))], [variable()])


pytorch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")


def odd_tensors():
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import distribute_tensor

    if not dist.is_initialized():
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    ones = torch.ones(80, 80)
    return {
        "DTensor": distribute_tensor(ones, mesh, [Replicate()]),
        "layout torch.sparse_coo": ones.to_sparse(),
        "negative": (torch.ones(80, 80) * -1j).conj().imag,
    }


@pytorch
def test_what_is_no_plain_tensor_has_no_address():
    import torch

    from keras_efficient.kernels.ffi.tensor_table import TensorTable
    from keras_efficient.kernels.ffi.tensors import why_not_plain

    @numba_ffi(outputs={"y": "x"})
    def copy(x, y):
        y[:] = x

    assert why_not_plain(torch.nn.Parameter(torch.ones(2))) is None
    try:
        for name, x in odd_tensors().items():
            assert name in why_not_plain(x)
            with pytest.raises(TypeError, match=f"'x' must .*{name}.*to_local"):
                copy(x)
            with pytest.raises(TypeError, match=name):
                TensorTable([(torch.ones(80, 80), x)])
        small = keras.Variable(np.ones(7, "float32"))
        for cls in (optimizers.Adam8bit, optimizers.MicroAdam):
            # Before anything is stepped, also what is in plain tensors.
            with pytest.raises(TypeError, match="cannot step a DTensor.*local"):
                gradients = [torch.ones(7), odd_tensors()["DTensor"]]
                cls(0.1).apply(gradients, [small, variable()])
        assert (small.numpy() == 1).all()
    finally:
        torch.distributed.destroy_process_group()


@pytorch
def test_a_gradient_that_is_no_plain_tensor():
    import torch

    x = variable()
    optimizer = optimizers.Adam8bit(0.1)
    negative = (torch.ones(80, 80) * -1j).conj().imag
    optimizer.apply([negative], [x])
    assert abs(x.numpy() - 0.9).max() < 1e-3
    config.set_kernels("numba")
    with pytest.raises(RuntimeError, match="'numba', which cannot .*negative"):
        optimizer.apply([negative], [x])
