"""What is compiled is dropped once any source beside it has changed."""

import os

import pytest

pytest.importorskip("numba")

from keras_efficient.kernels.ffi.numba_kernel import drop_stale_cache


def test_only_what_is_older_than_a_source_is_dropped(tmp_path):
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    times = {
        "kernel.py": 100,
        "helper.py": 200,
        "__pycache__/kernel.step-9.py311.nbi": 150,
        "__pycache__/kernel.step-9.py311.1.nbc": 150,
        "__pycache__/kernel.other-30.py311.1.nbc": 250,
        "__pycache__/kernel.cpython-311.pyc": 150,
    }
    for name, time in times.items():
        tmp_path.joinpath(name).touch()
        os.utime(tmp_path / name, (time, time))
    drop_stale_cache(tmp_path)
    assert sorted(path.name for path in cache.iterdir()) == [
        "kernel.cpython-311.pyc",
        "kernel.other-30.py311.1.nbc",
    ]
