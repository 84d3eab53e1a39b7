"""The rooms of kernels import what lies below them, and nothing of Keras."""

import ast
from pathlib import Path

import keras
import pytest

KERNELS = Path(__file__).parents[2] / "keras_efficient" / "kernels"
# What each room, and each file beside them, may import of the package.
MAY_IMPORT = {
    "ffi": {"ffi"},
    "cpu": {"cpu", "ffi", "policy"},
    "gpu": {"gpu", "ffi", "policy"},
    "policy": {"ffi"},
    "__init__": {"ffi"},
}
COMPILERS = {"numba": {"ffi", "cpu"}, "triton": {"gpu"}}

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the same on each backend"
)


def imports(path):
    """Full names of all that a file imports, at its top or inside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_know_what_lies_below_them_only():
    wrong = []
    for path in KERNELS.rglob("*.py"):
        room = path.relative_to(KERNELS).parts[0].removesuffix(".py")
        for name in imports(path):
            first, *others = name.split(".")
            if first == "keras_efficient":
                is_right = others[0] == "kernels" and (
                    others[1] in MAY_IMPORT[room]
                )
            else:
                is_right = first != "keras" and (
                    room in COMPILERS.get(first, {room})
                )
            if not is_right:
                wrong.append(f"{path.relative_to(KERNELS)} imports {name}")
    assert not wrong, "\n".join(wrong)
    for room in ("ffi", "cpu", "gpu"):
        assert (KERNELS / room / "__init__.py").is_file()
