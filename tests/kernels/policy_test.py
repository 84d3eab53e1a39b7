import sys

import keras
import numpy as np
import pytest

from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import support
from keras_efficient.kernels.ffi import tensors
from keras_efficient.kernels.ffi import xla_version

BACKEND = keras.config.backend()
CACHED = (
    support.why_not_installed,
    xla_version.header_version,
    xla_version.package_folder,
    xla_version.why_not,
)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", None)
    monkeypatch.delenv(policy.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    clear()
    yield
    clear()


def clear():
    """Forget what was found to be available."""
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def numba():
    return pytest.importorskip("numba")


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)


@pytest.fixture
def with_triton(monkeypatch):
    """As if Triton was installed and loaded."""
    monkeypatch.setattr(policy, "why_not_installed", lambda kernel: None)
    monkeypatch.setitem(sys.modules, "triton", object())


def test_environment(monkeypatch):
    assert policy.kernels() == "auto"
    monkeypatch.setenv(policy.VARIABLE, "off")
    assert policy.kernels() == "off"
    policy.set_kernels("auto")
    assert policy.kernels() == "auto"
    monkeypatch.setattr(policy, "_chosen", None)
    monkeypatch.setenv(policy.VARIABLE, "")
    assert policy.kernels() == "auto"
    monkeypatch.setenv(policy.VARIABLE, "cuda")
    with pytest.raises(
        ValueError, match="KERAS_EFFICIENT_KERNELS must .*'cuda'"
    ):
        policy.choose(np.ones(1))


def test_auto_is_silent(numba, no_numba):
    assert policy.choose(np.ones(1)) is None
    assert policy.choose_for("torch", "cpu") is None
    assert policy.choose_for("jax", "tpu") is None


def test_auto(numba, with_triton):
    assert policy.choose(keras.ops.ones(1)) == "numba"
    assert policy.choose(np.ones(1), 1.0) == "numba"
    assert policy.choose_for("torch", "cuda") == "triton"
    assert policy.choose_for("jax", "cuda") is None
    assert policy.choose_for("tensorflow", "cuda") is None
    assert policy.choose_for("torch", "mps") is None


def test_off(numba, monkeypatch):
    policy.set_kernels("off")
    assert policy.choose(np.ones(1)) is None
    assert policy.choose("not a tensor") is None
    assert policy.choose_for("torch", "cuda") is None


def test_a_kernel_by_name_that_is_not_installed(monkeypatch, no_numba):
    with pytest.raises(RuntimeError, match="'numba': numba cannot be imported"):
        policy.set_kernels("numba")
    assert policy.kernels() == "auto"
    monkeypatch.setenv(policy.VARIABLE, "numba")
    with pytest.raises(RuntimeError, match="'numba', which .* numpy"):
        policy.choose(np.ones(1))
    monkeypatch.setattr(xla_version, "package_folder", lambda package: None)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        policy.set_kernels("triton")


def test_a_kernel_by_name_on_the_wrong_device(numba, with_triton):
    policy.set_kernels("numba")
    assert policy.choose_for("torch", "cpu") == "numba"
    with pytest.raises(RuntimeError, match="'cuda': Numba .* on the CPU"):
        policy.choose_for("torch", "cuda")
    policy.set_kernels("triton")
    assert policy.choose_for("torch", "cuda") == "triton"
    with pytest.raises(RuntimeError, match="no triton kernels for jax"):
        policy.choose_for("jax", "cuda")
    with pytest.raises(RuntimeError, match="'cpu': Triton kernels run on CUDA"):
        policy.choose_for("torch", "cpu")


def test_triton_is_interpreted_on_the_cpu_by_name_only(
    monkeypatch, numba, with_triton
):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert policy.choose_for("torch", "cpu") == "numba"
    policy.set_kernels("triton")
    assert policy.choose_for("torch", "cpu") == "triton"


def test_triton_is_not_loaded_after_tensorflow(monkeypatch, with_triton):
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert "after TensorFlow" in policy.why_not("triton", "torch", "cuda")
    assert policy.choose_for("torch", "cuda") is None
    monkeypatch.setitem(sys.modules, "triton", object())
    assert policy.choose_for("torch", "cuda") == "triton"


def test_numba_without_its_compiler(numba, monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    reason = policy.why_not("numba", "torch", "cpu")
    assert reason == "NUMBA_DISABLE_JIT is set"


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_version_of_the_header(framework, monkeypatch, tmp_path):
    package, header = xla_version._HEADERS[framework]
    monkeypatch.setattr(xla_version, "package_folder", lambda _: tmp_path)
    assert "is unknown" in xla_version.why_not(framework)
    clear()
    (tmp_path / header).parent.mkdir(parents=True)
    (tmp_path / "libtensorflow_framework.so.2").touch()
    lines = "#define XLA_FFI_API_MAJOR {}\n#define XLA_FFI_API_MINOR {}\n"
    for version, reason in (
        ((0, 3), None),
        ((1, 0), "is 1.0; tested are 0.2 a"),
    ):
        (tmp_path / header).write_text(lines.format(*version))
        found = xla_version.why_not(framework)
        assert found is None if reason is None else reason in found
        clear()
    monkeypatch.setattr(xla_version, "package_folder", lambda _: None)
    assert xla_version.why_not(framework) == f"{framework} is not installed"


def test_frameworks_and_devices(numba):
    x = keras.ops.ones(1)
    framework = tensors.framework_of([1, np.ones(1), x])
    assert framework == BACKEND
    assert tensors.device_of([1, np.ones(1), x], framework) == "cpu"
    assert tensors.framework_of([np.ones(1), 2.0, True]) == "numpy"
    symbolic = keras.KerasTensor((1,))
    assert tensors.framework_of([symbolic, 1]) is None
    assert policy.choose(symbolic) is None
    policy.set_kernels("numba")
    with pytest.raises(RuntimeError, match="cannot serve other tensors"):
        policy.choose(symbolic)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
def test_another_device():
    import torch

    values = [torch.ones(1), torch.ones(1, device="meta")]
    assert tensors.device_of(values, "torch") == "meta"
    assert policy.choose(*values) is None


def test_within_compiled_code(numba):
    found = []

    def fn(x):
        found.append(policy.choose(x))
        return x

    if BACKEND == "jax":
        import jax

        jax.jit(fn)(keras.ops.ones(1))
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(fn)(keras.ops.ones(1))
        tf.function(fn, jit_compile=True)(keras.ops.ones(1))
    else:
        fn(keras.ops.ones(1))
    assert set(found) == {"numba"}
