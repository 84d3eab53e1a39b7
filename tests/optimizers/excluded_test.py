"""Layers that keep plain state, before and after a model is saved."""

import contextlib

import keras
import numpy as np
import pytest

from keras_efficient.optimizers.excluded import find_excluded
from keras_efficient.optimizers.excluded import record_of
from tests.optimizers.table import TABLE
from tests.optimizers.table import check_equal
from tests.optimizers.table import each_optimizer
from tests.optimizers.table import layout_of
from tests.optimizers.table import make


def variables(*paths):
    found = []
    for path in paths:
        *scopes, name = path.split("/")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            found.append(keras.Variable(np.zeros((64, 96)), name=name))
    return found


PATHS = ("body/head/kernel", "body/dense/kernel", "dense/kernel", "head/bias")


def test_patterns_are_searched_for_in_paths():
    made = variables(*PATHS)
    assert [v.path for v in made] == list(PATHS)
    for patterns, expected in (
        ([], [False] * 4),
        (["head"], [True, False, False, True]),
        (["^dense", "bias$"], [False, False, True, True]),
        (["body/.*/kernel"], [True, True, False, False]),
    ):
        assert find_excluded(patterns, made) == expected


def test_a_record_holds_where_paths_do_not():
    made, patterns = variables(*PATHS), ["^body/"]
    excluded = find_excluded(patterns, made)
    record = record_of(made, excluded)
    loaded = variables("head/kernel", "dense/kernel", *PATHS[2:])
    assert find_excluded(patterns, loaded) != excluded
    assert find_excluded(patterns, loaded, record) == excluded
    again = record_of(loaded, excluded)
    assert find_excluded(patterns, made, again) == excluded
    # Not for other models: fewer variables, or with other names.
    assert find_excluded(patterns, loaded[:3], record) == [False] * 3
    other = variables("tail/kernel", "dense/kernel", *PATHS[2:])
    assert find_excluded(patterns, other, record) == [False] * 4
    assert record_of(made, [False] * 4) is None


@each_optimizer
def test_what_is_excluded_is_plain(name):
    layouts = []
    for exclude_layers in (None, ["dense"], ["dense", "head"]):
        optimizer = make(name, exclude_layers=exclude_layers)
        optimizer.build(variables("dense/kernel", "head/kernel"))
        layouts.append(layout_of(optimizer))
        plain = [not x for x in optimizer._is_compressed]
        excluded = [bool(exclude_layers), len(exclude_layers or ()) == 2]
        # Muon's have 8-bit Adam, whose state is another one, too.
        assert plain == (excluded if name != "Muon8bit" else [False] * 2)
    assert len({str(layout) for layout in layouts}) == 3
    assert optimizer.get_config()["exclude_layers"] == ["dense", "head"]


@pytest.mark.parametrize("name", ["Adam8bit", "SinkGD"])
def test_holds_for_a_model_that_is_loaded(name, tmp_path, monkeypatch):
    inner = keras.Sequential(
        [keras.layers.Dense(64, name="first"), keras.layers.Dense(64)],
        name="inner",
    )
    inputs = keras.Input((64,))
    outputs = keras.layers.Dense(64, name="first")(inner(inputs))
    model = keras.Model(inputs, outputs)
    optimizer = TABLE[name].cls(0.01, exclude_layers=["^inner/first"])
    model.compile(optimizer, "mse")
    x = np.ones((4, 64), "float32")
    model.fit(x, x, verbose=0)
    assert optimizer._is_compressed == [False, False, True, False, True, False]
    model.save(tmp_path / "model.keras")
    with monkeypatch.context() as patch:
        # Keras compiles no model whose `compile` is not its own.
        if "compile" in vars(keras.Model):
            patch.delattr(keras.Model, "compile")
        again = keras.models.load_model(tmp_path / "model.keras")
    assert again.trainable_variables[0].path == "first/kernel"
    assert again.optimizer._is_compressed == optimizer._is_compressed
    check_equal(again.optimizer.variables, optimizer.variables)
    assert again.optimizer.iterations == 1
