"""What holds for the package as a whole: names, floors, files."""

import ast
import functools
import inspect
import re
import tomllib
from pathlib import Path

import keras
import pytest

import keras_efficient
from tests.marks import once

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_efficient"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = (
    *("callbacks", "config", "constraints", "initializers", "kernels"),
    *("layers", "losses", "metrics"),
    *("models", "ops", "optimizers", "regularizers", "utils"),
)

# What lies right below each part; it may import that and what is further down.
BELOW = {
    "__main__": {"cli"},
    "cli": {"utils", "version"},
    "utils": {"conversion", "config"},
    "conversion": {"models"},
    "models": {"layers", "optimizers", "callbacks", "losses"},
    "layers": {"autodiff", "ops", "constraints", "initializers"},
    "optimizers": {"autodiff", "ops"},
    "callbacks": {"autodiff", "constraints"},
    "losses": {"autodiff", "ops", "metrics", "regularizers"},
    "autodiff": {"kernels", "backend"},
    "ops": {"kernels", "backend"},
    "config": {"kernels", "backend"},
    "constraints": {"ops"},
    "initializers": set(),
    "metrics": set(),
    "regularizers": set(),
    "kernels": set(),
    "backend": set(),
    "version": set(),
}
FRAMEWORKS = {"jax", "jaxlib", "numba", "tensorflow", "torch", "triton"}


def top_level_functions():
    """What the package exports besides its parts and its version."""
    return [
        name
        for name in keras_efficient.__all__
        if inspect.isfunction(getattr(keras_efficient, name))
    ]


def public_names():
    names = top_level_functions()
    for module in MODULES:
        path = PACKAGE / module / "__init__.py"
        if not path.exists():  # a module that is one file
            nodes = ast.parse(PACKAGE.joinpath(f"{module}.py").read_text()).body
            names += [
                f"{module}.{node.name}"
                for node in nodes
                if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
            ]
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names += [
                    f"{module}.{alias.asname or alias.name}"
                    for alias in node.names
                ]
    return names


def public_classes():
    """Those that Keras saves with a model; callbacks are not."""
    return [
        name
        for name in public_names()
        if inspect.isclass(resolve(name))
        and hasattr(resolve(name), "get_config")
    ]


def resolve(name):
    *module, name = name.split(".")
    part = getattr(keras_efficient, *module) if module else keras_efficient
    return getattr(part, name, None)


def part_of(path):
    """The folder or file right below `keras_efficient`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imports(path):
    """Full names of all that a file imports, at its top or inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def names_of(path):
    return str(path.relative_to(ROOT))


PRIVATE = ("keras.src", "keras._tf_keras")
# It runs Keras' own test of layers.
MAY_USE_PRIVATE = ROOT / "tests" / "layers" / "keras_layer_test.py"


def test_the_package_exports_its_modules():
    exported = imports(PACKAGE / "__init__.py")
    for module in MODULES:
        assert f"keras_efficient.{module}" in exported
        assert inspect.ismodule(getattr(keras_efficient, module))
    assert len(public_names()) == len(set(public_names())) > len(MODULES)


def test_public_name_resolves():
    offenders = []
    for name in public_names():
        value = resolve(name)
        # `from … import X as X`: the name is that of the thing itself.
        fine = callable(value) and value.__name__ == name.split(".")[-1]
        if not fine or not value.__module__.startswith("keras_efficient."):
            offenders.append(name)
    assert not offenders


@once
def test_public_name_is_in_the_table():
    table = (ROOT / "guides" / "api.md").read_text()
    assert not [
        name
        for name in public_names()
        if not re.search(rf"\b{re.escape(name)}\b", table)
    ]


def test_public_classes_are_found():
    assert "layers.ReversibleSequence" in public_classes()
    assert "optimizers.MicroAdam" in public_classes()


def test_public_class_is_registered():
    offenders = []
    for name in public_classes():
        value = resolve(name)
        registered = f"keras_efficient>{value.__name__}"
        found = keras.saving.get_registered_object(registered)
        given = keras.saving.get_registered_name(value)
        if found is not value or given != registered:
            offenders.append((name, given))
    assert not offenders


@once
def test_imports_only_go_down():
    offenders = []
    for path in FILES:
        part = part_of(path)
        reached = {
            name.split(".")[1] if "." in name else "the whole package"
            for name in imports(path)
            if name.split(".")[0] == "keras_efficient"
        }
        up = reached - {part} - below(part) if part != "__init__" else ()
        offenders += [f"{names_of(path)} imports {name}" for name in up]
    assert not offenders


def below(part):
    """All parts under `part`, not only the next."""
    return BELOW[part].union(*map(below, BELOW[part]))


@once
def test_frameworks_are_imported_on_the_ground_only():
    offenders = []
    for path in FILES:
        roots = {name.split(".")[0] for name in imports(path)}
        if roots & FRAMEWORKS and part_of(path) not in ("backend", "kernels"):
            offenders.append(names_of(path))
    assert not offenders


@once
def test_keras_is_used_through_its_public_api():
    offenders = [
        names_of(path)
        for path in FILES
        if "keras.src" in path.read_text()
        or any(name.startswith(PRIVATE) for name in imports(path))
    ]
    offenders += [
        names_of(path)
        for folder in ("tests", "tools", "guides")
        for path in (ROOT / folder).rglob("*.py")
        if any(name.startswith(PRIVATE) for name in imports(path))
        and path != MAY_USE_PRIVATE
    ]
    assert not offenders


@once
def test_file_is_short():
    assert not [
        names_of(path)
        for path in FILES
        if len(path.read_text().splitlines()) >= 300
    ]


@once
def test_no_bare_except_and_no_assert():
    offenders = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            bare = isinstance(node, ast.ExceptHandler) and node.type is None
            if bare or isinstance(node, ast.Assert):
                offenders.append(f"{names_of(path)}:{node.lineno}")
    assert not offenders


@once
def test_the_version_is_that_of_the_distribution():
    assert isinstance(keras_efficient.__version__, str)
    assert keras_efficient.__version__[0].isdigit()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    source = settings["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    module, name = source.rsplit(".", 1)
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    values = {
        node.targets[0].id: node.value.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
    }
    assert values[name] == keras_efficient.__version__
