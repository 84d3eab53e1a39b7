"""What holds for the package as a whole: names, floors, files."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import keras
import pytest

import keras_efficient

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_efficient"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = (
    *("callbacks", "config", "initializers", "kernels", "layers", "metrics"),
    *("models", "ops", "optimizers", "regularizers", "utils"),
)

# What lies right below each part; it may import that and what is further down.
# On no floor: these may read all of them, and none of them imports these.
BESIDE = {"utils", "cli", "__main__"}
BELOW = {
    "models": {"layers", "optimizers", "callbacks"},
    "layers": {"autodiff", "initializers", "ops"},
    "optimizers": {"autodiff", "ops"},
    "callbacks": {"autodiff", "ops"},
    "autodiff": {"kernels", "backend"},
    "ops": {"kernels", "backend"},
    "config": {"kernels", "backend"},
    "initializers": set(),
    "metrics": set(),
    "regularizers": set(),
    "kernels": set(),
    "backend": set(),
    "version": set(),
}
FRAMEWORKS = {"jax", "jaxlib", "numba", "tensorflow", "torch", "triton"}


def public_names():
    names = []
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
    module, name = name.split(".")
    return getattr(getattr(keras_efficient, module), name, None)


def part_of(path):
    """The folder or file right below `keras_efficient`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


each_file = pytest.mark.parametrize("path", FILES, ids=names_of)


def test_the_package_exports_its_modules():
    exported = imports(PACKAGE / "__init__.py")
    for module in MODULES:
        assert f"keras_efficient.{module}" in exported
        assert inspect.ismodule(getattr(keras_efficient, module))
    assert len(public_names()) == len(set(public_names())) > len(MODULES)


@pytest.mark.parametrize("name", public_names())
def test_public_name_resolves(name):
    value = resolve(name)
    assert callable(value)
    # `from … import X as X`: the name is that of the thing itself.
    assert value.__name__ == name.split(".")[1]
    assert value.__module__.startswith("keras_efficient.")


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_in_the_readme(name):
    readme = (ROOT / "README.md").read_text()
    assert re.search(rf"\b{re.escape(name)}\b", readme)


def test_public_classes_are_found():
    assert "layers.ReversibleSequence" in public_classes()
    assert "optimizers.MicroAdam" in public_classes()


@pytest.mark.parametrize("name", public_classes())
def test_public_class_is_registered(name):
    value = resolve(name)
    registered = f"keras_efficient>{value.__name__}"
    assert keras.saving.get_registered_name(value) == registered
    assert keras.saving.get_registered_object(registered) is value


@each_file
def test_imports_only_go_down(path):
    part = part_of(path)
    reached = {
        name.split(".")[1] if "." in name else "the whole package"
        for name in imports(path)
        if name.split(".")[0] == "keras_efficient"
    }
    if part != "__init__":
        allowed = BESIDE.union(BELOW) if part in BESIDE else below(part)
        assert reached - {part} <= allowed


def below(part):
    """All parts under `part`, not only the next."""
    return BELOW[part].union(*map(below, BELOW[part]))


@each_file
def test_frameworks_are_imported_on_the_ground_only(path):
    if part_of(path) not in ("backend", "kernels"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & FRAMEWORKS


@each_file
def test_keras_is_used_through_its_public_api(path):
    private = ("keras.src", "keras._tf_keras")
    assert not [name for name in imports(path) if name.startswith(private)]
    assert "keras.src" not in path.read_text()


@each_file
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) < 300


@each_file
def test_no_bare_except_and_no_assert(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), node.lineno
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not bare, node.lineno


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
