import functools
import gc
import os
import sys

# TensorFlow reads it when it is imported. Without oneDNN, which is off by
# default on CPUs without AVX-512, it has no convolution with channels first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import pytest

from tests.compilers import build_optimizers_first
from tests.compilers import draw_by_numpy
from tests.compilers import optimize_less
from tests.compilers import set_flags
from tests.devices import refuse_arrays

set_flags()


def pytest_collection_finish():
    """What is there by now stays: garbage collection is to skip it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_other_framework():
    """Let Keras find no TensorFlow to seed: its import takes six seconds."""
    if keras.config.backend() != "tensorflow":
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tensorflow", None)
            keras.utils.set_random_seed(0)  # once it has looked


@pytest.fixture(autouse=True, scope="session")
def as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        if keras.config.backend() == "torch":
            refuse_arrays(patch)
        yield


@pytest.fixture(autouse=True)
def fresh_seed(no_other_framework):
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler():
    """Forget compiled programs: they slow down the garbage collector."""
    yield
    if keras.config.backend() == "jax":
        import jax

        jax.clear_caches()
    keras.utils.clear_session()  # collects garbage
    # Frameworks keep some all the same: two seconds a collection, in the end.
    gc.freeze()


@pytest.fixture
def full_compiler():
    """Asked for by tests of what depends on how a compiler rounds."""


@pytest.fixture
def own_compile():
    """Asked for by tests of models that Keras is to compile by itself.

    Those that load one, too: Keras looks whether `compile` is its own.
    """


@pytest.fixture(autouse=True)
def quick_compiler(request, monkeypatch):
    """Optimize less: most programs of tests run once or twice."""
    full = "full_compiler" in request.fixturenames
    as_it_is = "own_compile" in request.fixturenames
    if keras.config.backend() == "tensorflow" and not as_it_is:
        # `compile` leaves out XLA, unless a test asks for it.
        by_graph = functools.partialmethod(
            keras.Model.compile, jit_compile=False
        )
        monkeypatch.setattr(keras.Model, "compile", by_graph)
        build_optimizers_first(monkeypatch)
    if keras.config.backend() == "jax":
        draw_by_numpy(monkeypatch)
    if full or keras.config.backend() == "torch":
        yield
        return
    optimize_less(True)
    yield
    optimize_less(False)


@pytest.fixture
def float64():
    """Float64 wherever the backend has it (it is off by default on JAX)."""
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    if keras.config.backend() == "jax":
        jax.config.update("jax_enable_x64", False)
