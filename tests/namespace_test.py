"""What tab-completion shows is what is public."""

import ast
import inspect
from pathlib import Path

import pytest

import keras_efficient

PACKAGE = Path(keras_efficient.__file__).parent


def exports(path):
    """The names that a file imports as `X as X`."""
    return [
        alias.asname
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]


def functions(path):
    """The public functions that a module of one file defines."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    ]


def test_the_package_shows_what_it_exports_and_nothing_else():
    shown = dir(keras_efficient)
    assert shown == sorted(exports(PACKAGE / "__init__.py"))
    # These are attributes, too, once their files are imported.
    assert hasattr(keras_efficient, "autodiff")
    assert not {"autodiff", "backend", "version"}.intersection(shown)
    assert all(hasattr(keras_efficient, name) for name in shown)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in dir(keras_efficient)
        if inspect.ismodule(getattr(keras_efficient, name))
    ],
)
def test_a_part_shows_what_it_exports_and_nothing_else(name):
    part = PACKAGE / name / "__init__.py"
    public = (
        exports(part) if part.exists() else functions(PACKAGE / f"{name}.py")
    )
    assert public
    assert dir(getattr(keras_efficient, name)) == sorted(public)


def test_the_package_says_what_it_is_and_where_to_start():
    about = keras_efficient.__doc__
    assert "memory_report" in about and "guides/quickstart.py" in about
