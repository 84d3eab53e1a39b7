"""Names, variables and gradients: as with the optimizers of Keras."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import optimizers
from tests.optimizers.table import BACKEND
from tests.optimizers.table import TABLE
from tests.optimizers.table import check_equal
from tests.optimizers.table import each_optimizer
from tests.optimizers.table import make
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import normal
from tests.optimizers.table import to_numpy


@each_optimizer
def test_names_are_numbered(name):
    cls = TABLE[name].cls
    keras.utils.clear_session()
    snake_case = cls.__module__.rpartition(".")[2]
    assert [cls().name, cls(name=None).name, cls(name="mine").name] == [
        snake_case,
        f"{snake_case}_1",
        "mine",
    ]

    class Derived(cls):
        pass

    assert Derived().name == "derived"


@pytest.mark.parametrize("name", dir(optimizers))
def test_keras_finds_each_by_its_names(name):
    cls = getattr(optimizers, name)
    parameters = list(inspect.signature(cls).parameters.values())
    if any(
        x.default is x.empty and x.kind != x.VAR_KEYWORD for x in parameters
    ):
        pytest.skip("cannot be made of a name")
    for text in (name, name.lower(), cls.__module__.rpartition(".")[2]):
        optimizer = keras.optimizers.get(text)
        assert type(optimizer) is cls
    # A string in a file stays what it is.
    assert keras.saving.deserialize_keras_object(name) == name
    assert keras.saving.get_registered_name(cls) == f"keras_efficient>{name}"


def test_compile_by_name(tmp_path, monkeypatch):
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(80)])
    model.compile("adam_8bit", "mse")
    x, y = np.ones((8, 64), "float32"), np.ones((8, 80), "float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    for old, new in zip(
        to_numpy(model.optimizer.variables),
        to_numpy(loaded.optimizer.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    loaded.fit(x, y, verbose=0)


def sparse(values, indices, shape):
    """Return rows of a matrix as the backend has them; some twice."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.IndexedSlices(values, indices, shape)
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        return BCOO(
            (ops.array(values), ops.array(indices[:, None])), shape=shape
        )
    import torch

    return torch.sparse_coo_tensor(indices[None], values, shape)


@each_optimizer
@pytest.mark.parametrize("variable", ["embeddings", "kernel"])
def test_sparse_gradient_of_an_embedding(name, variable):
    if BACKEND != "tensorflow" and name != "Adam8bit":
        pytest.skip("made dense before the optimizers differ")
    table = normal(64, 64)
    pair = [keras.Variable(table, name=variable) for _ in range(2)]
    pair_of_optimizers = [make(name, clipnorm=30.0), make(name, clipnorm=30.0)]
    for step in range(3):
        indices = np.array([1, 5, 1, 7]) + step  # other rows move on
        values = np.round(4 * normal(4, 64, seed=step)) / 4
        gradient = np.zeros_like(table)
        np.add.at(gradient, indices, values)
        rows = sparse(values, indices, table.shape)
        pair_of_optimizers[0].apply([rows], pair[:1])
        pair_of_optimizers[1].apply([ops.array(gradient)], pair[1:])
        check_equal(pair[:1], pair[1:])
    assert (to_numpy(pair[:1])[0] != table).any()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
@each_optimizer
def test_native_variables(name):
    """They have no path, and a method `value`."""
    import tensorflow as tf

    ours = make_variables()
    native = [tf.Variable(x.value, name=f"a/{x.name}") for x in ours]
    pairs = [(make(name), ours), (make(name), native)]
    for step in range(2):
        for optimizer, variables in pairs:
            gradients = [ops.array(x) for x in make_gradients(step)]
            optimizer.apply(gradients, variables)
    check_equal(ours, native)


@each_optimizer
def test_complex_variables_are_refused(name):
    if BACKEND == "torch":
        import torch

        class Complex:
            shape, dtype, name = (80, 80), torch.complex64, "z"
            path, overwrite_with_gradient = "layer/z", False

        variables = [Complex()]
    else:
        value = np.ones((80, 80), "complex64")
        variables = [keras.Variable(value, dtype="complex64", name="z")]
    optimizer = make(name)
    with pytest.raises(
        TypeError, match="real variables.*z' of dtype complex64"
    ):
        optimizer.build(variables)
    assert not optimizer.built
