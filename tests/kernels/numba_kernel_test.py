"""What is compiled is dropped once any source beside it has changed."""

import importlib
import os
from pathlib import Path

import pytest

pytest.importorskip("numba")

import numba

from keras_efficient.kernels import cpu
from keras_efficient.kernels.ffi import numba_kernel
from keras_efficient.kernels.ffi.numba_kernel import drop_stale_cache


@pytest.mark.parametrize("folder", ["__pycache__", "elsewhere"])
def test_only_what_is_older_than_a_source_is_dropped(folder, tmp_path):
    cache = tmp_path / folder
    cache.mkdir()
    times = {
        "kernel.py": 100,
        "helper.py": 200,
        f"{folder}/kernel.step-9.py311.nbi": 150,
        f"{folder}/kernel.step-9.py311.1.nbc": 150,
        f"{folder}/kernel.other-30.py311.1.nbc": 250,
        f"{folder}/kernel.cpython-311.pyc": 150,
    }
    for name, time in times.items():
        tmp_path.joinpath(name).touch()
        os.utime(tmp_path / name, (time, time))
    drop_stale_cache(tmp_path, None if folder[0] == "_" else cache)
    assert sorted(path.name for path in cache.iterdir()) == [
        "kernel.cpython-311.pyc",
        "kernel.other-30.py311.1.nbc",
    ]


def test_kernels_know_where_they_are_kept(tmp_path, monkeypatch):
    """Not always beside their sources."""
    kept = []
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        numba_kernel, "drop_stale_cache", lambda *folders: kept.extend(folders)
    )
    importlib.reload(cpu)
    assert kept[0] == Path(cpu.__file__).parent
    assert tmp_path in Path(kept[1]).parents
