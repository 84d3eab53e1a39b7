"""What the bridge refuses, and what happens when a kernel fails."""

import os
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_efficient
from keras_efficient.kernels import numba_ffi
from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi import support
from keras_efficient.kernels.ffi import xla_version

numba = pytest.importorskip("numba")

BACKEND = keras.config.backend()
IN_XLA = BACKEND in ("jax", "tensorflow")
if BACKEND not in ("jax", "tensorflow", "torch"):
    pytest.skip("no tensors of its own", allow_module_level=True)


@numba_ffi(in_place="x", dtypes={"x": "float32", "y": ("int8", "uint8")})
def add(x, y):
    x += y


@numba_ffi(outputs={"y": "x"})
def root(x, y):
    if x[0] < 0:
        raise ValueError("Below 0")
    y[:] = np.sqrt(x)


def tensor(x, dtype="float32"):
    return keras.ops.convert_to_tensor(np.asarray(x, dtype))


@pytest.fixture
def untested(monkeypatch):
    """As if the frameworks had a version of the XLA FFI that is not known."""
    monkeypatch.setattr(xla_version, "TESTED", ((0, 1),))
    xla_version.why_not.cache_clear()
    yield
    xla_version.why_not.cache_clear()


def test_arguments():
    x = tensor([1, 2])
    with pytest.raises(TypeError, match="2 arguments: x, y. Received: 1"):
        add(x)
    with pytest.raises(TypeError, match="'y' of 'add' .* int8 or uint8"):
        add(x, x)
    with pytest.raises(TypeError, match="'x' of 'root' .* complex64"):
        root(tensor([1, 2], "complex64"))
    with pytest.raises(TypeError, match="'add' takes tensors .* 'str'"):
        add("x", "y")


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("`in_place` of 'f' must name .*'x', 'y'.*'z'", {"in_place": "z"}),
        ("`outputs` of 'f' must name .*'z'", {"outputs": {"z": "x"}}),
        (
            r"`outputs` of 'f' .*\('x',\).*'y'",
            {"outputs": {"y": "y"}},
        ),
        ("`dtypes` of 'f'", {"outputs": {"y": "x"}, "dtypes": {"y": "int8"}}),
        ("in `in_place` and", {"in_place": "y", "outputs": {"y": "x"}}),
        ("'f' has no result", {}),
    ],
)
def test_declaration(message, arguments):
    def f(x, y):
        pass

    with pytest.raises(ValueError, match=message):
        numba_ffi(f, **arguments)


def test_output_dtype():
    @numba_ffi(outputs={"y": ((3,), "float8")})
    def f(x, y):
        pass

    with pytest.raises(TypeError, match="output 'y' of 'f' .* 'float8'"):
        f(tensor([1]))


@pytest.mark.parametrize("make", [tensor, np.asarray])
def test_a_kernel_that_returns_its_result(make):
    @numba_ffi(in_place="x")
    def add_one(x):
        x += 1
        return x

    @numba_ffi(outputs={"y": "x"})
    def count(x, y):
        y[:] = x
        if x[0] > 1:
            return x.size

    x = make(np.ones(2, "float32"))
    with pytest.raises(TypeError, match="'add_one' must .* 'x'. .* array"):
        add_one(x)
    assert np.asarray(x).tolist() == [1, 1]  # was not run
    with pytest.raises(TypeError, match="'count' must .* 'y'. .* that returns"):
        count(x)


@pytest.mark.parametrize("jit_compile", [None, False, True])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
def test_a_gradient_on_tensorflow(jit_compile):
    import tensorflow as tf

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = root(2 * x)
        return tape.gradient(y, x)

    if jit_compile is not None:
        gradient = tf.function(gradient, jit_compile=jit_compile)
    with pytest.raises(RuntimeError, match="'root' has no derivative"):
        gradient(tensor([1, 4]))


@pytest.mark.skipif(BACKEND != "jax", reason="JAX")
def test_a_gradient_on_jax():
    import jax

    with pytest.raises(ValueError, match="root.* cannot be differentiated"):
        jax.grad(lambda x: root(2 * x).sum())(tensor([1, 4]))


def test_an_exception_of_a_kernel_reaches_the_caller():
    calls = [root]
    message = "Below 0"
    if BACKEND == "jax":
        import jax

        calls.append(jax.jit(root))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        calls.append(tf.function(root))
        calls.append(tf.function(root, jit_compile=True))
    if IN_XLA:
        message = "The Numba kernel 'root' raised an exception"
    for call in calls:
        with pytest.raises(Exception, match=message):
            np.asarray(call(tensor([-1, 4])))
        assert np.asarray(call(tensor([1, 4]))).tolist() == [1, 2]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
def test_unknown_shapes_on_tensorflow():
    import tensorflow as tf

    call = tf.function(root, input_signature=[tf.TensorSpec([None])])
    with pytest.raises(ValueError, match=r"'x' with shape \(None,\)"):
        call(tensor([1, 4]))


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
def test_other_devices_on_torch():
    import torch

    with pytest.raises(RuntimeError, match="'meta': Numba kernels run on the"):
        root(torch.ones(2, device="meta"))


def test_numba_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    support.why_not_installed.cache_clear()
    with pytest.raises(RuntimeError, match="numba cannot be imported"):
        root(tensor([1, 4]))
    support.why_not_installed.cache_clear()


@pytest.mark.skipif(not IN_XLA, reason="XLA")
def test_untested_version(untested):
    x = tensor([1, 4])
    with pytest.raises(RuntimeError, match="XLA FFI .* tested are 0.1"):
        root(x)
    assert policy.choose(x) is None


@pytest.mark.skipif(not IN_XLA, reason="XLA")
def test_a_handler_looks_at_the_version_itself(monkeypatch):
    """The header could be that of another library than the one that runs."""
    from keras_efficient.kernels.ffi import xla_handler

    @numba_ffi(outputs={"y": "x"})
    def never_called(x, y):
        y[:] = 1

    monkeypatch.setattr(xla_handler, "_VERSIONS", (99,))
    with pytest.raises(Exception, match="never_called"):
        np.asarray(never_called(tensor([1, 4])))


def test_workqueue_runs_serially(monkeypatch):
    from keras_efficient.kernels.ffi import numba_kernel

    @numba_ffi(in_place="x", parallel=True)
    def increment(x):
        for i in numba.prange(x.size):
            x[i] += 1

    monkeypatch.setattr(numba_kernel, "threading_layer", lambda: "workqueue")
    assert np.asarray(increment(tensor([1, 2]))).tolist() == [2, 3]
    options = increment.numba_kernel.dispatcher().targetoptions
    assert options["parallel"] is False


def test_waiting_threads_do_not_spin(monkeypatch):
    """OpenMP reads the setting when it is loaded; it is gone afterwards."""
    from keras_efficient.kernels.ffi import numba_kernel

    seen = []
    monkeypatch.setattr(
        numba,
        "get_num_threads",
        lambda: seen.append(os.environ["OMP_WAIT_POLICY"]),
    )
    monkeypatch.setattr(numba, "threading_layer", lambda: "omp")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert numba_kernel.threading_layer() == "omp"
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    numba_kernel.threading_layer()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert seen == ["passive", "active"]


def test_kernels_of_one_name_are_told_apart():
    def make(number):
        @numba_ffi(in_place="x")
        def add_number(x):
            x += number

        return add_number

    first, second = make(1), make(2)
    assert np.asarray(first(tensor([1, 2]))).tolist() == [2, 3]
    assert np.asarray(second(tensor([1, 2]))).tolist() == [3, 4]


def test_kept_on_disk():
    """A new process, or here a new object, finds what was compiled."""
    root(np.ones(2, "float32"))
    again = numba_ffi(root.numba_kernel.function, outputs={"y": "x"})
    again(np.ones(2, "float32"))
    stats = again.numba_kernel.dispatcher().stats
    assert sum(stats.cache_hits.values()) == 1
    assert not stats.cache_misses


def test_numba_is_not_imported_before_a_call():
    code = "import sys, keras_efficient; print('numba' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert out.stdout.split()[-1] == "False", out.stderr


def test_the_example_in_the_docstring_runs():
    (code,) = re.findall("```python\n(.*?)```", numba_ffi.__doc__, re.DOTALL)
    scope = {"keras_efficient": keras_efficient}
    exec(textwrap.dedent(code), scope)
    ones = [tensor(np.ones(5)) for _ in range(2)]
    velocity, step = scope["momentum"](*ones, 1.0)
    assert np.allclose(np.asarray(velocity), 1.9)
