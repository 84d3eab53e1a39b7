"""Kernels keep to the limits of threads that were set, and leave them alone."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from keras_efficient import config
from keras_efficient.kernels import numba_ffi
from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import threads

BACKEND = keras.config.backend()
TWO = numba.config.NUMBA_NUM_THREADS >= 2


@numba_ffi(outputs={"y": ((1,), "int32")}, parallel=True)
def threads_of_a_kernel(x, y):
    for _ in numba.prange(x.size):
        pass
    y[0] = numba.get_num_threads()


def count():
    x = keras.ops.ones(4)
    return int(keras.ops.convert_to_numpy(threads_of_a_kernel(x))[0])


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    for variable in ("OMP_NUM_THREADS", "PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(variable, raising=False)
    before = config.num_threads()
    yield
    config.set_num_threads(before)


@pytest.mark.skipif(not TWO, reason="two threads")
def test_set_num_threads():
    config.set_num_threads(None)
    if BACKEND == "torch":
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        assert count() == 1
        config.set_num_threads(2)
        assert (count(), torch.get_num_threads()) == (2, 1)
        torch.set_num_threads(before)
    else:
        assert count() >= 2
    config.set_num_threads(1)
    assert config.num_threads() == 1
    assert count() == 1
    config.set_num_threads(10**6)
    assert count() == numba.config.NUMBA_NUM_THREADS
    # Numba's own limit, of this thread, is neither passed nor lost.
    if BACKEND == "torch":
        numba.set_num_threads(1)
        assert count() == 1
        numba.set_num_threads(2)
        config.set_num_threads(1)
        count()
        assert numba.get_num_threads() == 2
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_a_number_that_is_none(number):
    with pytest.raises(ValueError, match="`number` must be a positive integer"):
        config.set_num_threads(number)


@pytest.mark.skipif(not TWO, reason="two threads")
@pytest.mark.parametrize("value", ["1", "1,2", " 1 "])
def test_limit_of_the_environment(value, monkeypatch):
    assert threads.limit("jax") == numba.config.NUMBA_NUM_THREADS
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.limit("jax") == threads.limit("numpy") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads.limit("numpy") == numba.config.NUMBA_NUM_THREADS
    monkeypatch.setenv("NPROC", "1")
    assert threads.limit("jax") == 1
    if BACKEND in ("jax", "tensorflow"):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        threads.limit_handlers(BACKEND)  # as the next compilation does
        assert count() == 1


IN_A_FORK = """
import os, signal
import numpy as np, torch, keras
from keras_efficient import config, optimizers

torch.set_num_threads(1)
variable, other = (
    keras.Variable(np.ones((300, 300), "float32")) for _ in range(2)
)
made = optimizers.Adam8bit(0.1), optimizers.MicroAdam(0.1)

def step():
    for x, optimizer in zip((variable, other), made):
        optimizer.apply([torch.ones(300, 300)], [x])

config.set_num_threads(2)  # of kernels, which start OpenMP's here
step()
assert torch.get_num_threads() == 1
x = torch.ones(700, 700)
before = float((x @ x).sum())
child = os.fork()
if not child:
    signal.alarm(60)
    assert float((x @ x).sum()) == before
    step()
    rows = config.report(verbose=0)
    assert rows[4]["framework"] == "torch" and rows[4]["kernel"] == "numba"
    assert "fork" in rows[4]["reason"], rows[4]
    assert rows[0]["kernel"] == "portable" and "fork" in rows[0]["reason"]
    # A kernel of one's own runs serially.
    from keras_efficient.kernels import numba_ffi
    from keras_efficient.kernels.ffi import probe
    kernel = numba_ffi(probe.count, in_place="x", parallel=True)
    assert kernel(torch.zeros(2)).tolist() == [1, 1]
    assert kernel.numba_kernel.dispatcher().targetoptions["parallel"] is False
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
step()
assert (variable.numpy() < 0.9).all() and (other.numpy() < 1).any()
"""


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_limits_and_forks_of_pytorch():
    """In a new process: Numba starts its threads once."""
    result = subprocess.run(
        [sys.executable, "-c", IN_A_FORK],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_a_kernel_compiled_before_the_fork(monkeypatch):
    """What runs in parallel is compiled anew."""
    kernel = numba_ffi(
        threads_of_a_kernel.numba_kernel.function,
        outputs={"y": ((1,), "int32")},
        parallel=True,
    )
    kernel(np.ones(4))
    assert kernel.numba_kernel.dispatcher().targetoptions["parallel"]
    monkeypatch.setattr(threads, "_is_forked", True)
    assert threads.limit("numpy") == 1
    assert kernel(np.ones(4)).shape == (1,)
    assert not kernel.numba_kernel.dispatcher().targetoptions["parallel"]
    monkeypatch.setattr(policy, "_chosen", "auto")
    assert policy.choose(np.ones(4)) is None
    monkeypatch.setattr(policy, "_chosen", "numba")
    assert policy.choose(np.ones(4)) == "numba"
