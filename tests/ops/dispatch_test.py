"""The way to a kernel: what the table names, what is refused before."""

import ast
from pathlib import Path

import pytest
from keras import ops

import keras_efficient
from keras_efficient.kernels import policy
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.dispatch import KERNELS
from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments

FOLDER = Path(keras_efficient.__file__).parent / "kernels"
ARGUMENTS = Adam8bitArguments(learning_rate=0.1, step=1)


@pytest.fixture(autouse=True)
def kernels_by_default(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "auto")


def row(**changes):
    tensors = {
        "momentum_codes": ops.zeros((4, 64), "int8"),
        "momentum_scale": ops.zeros((4, 2), "float16"),
        "velocity_codes": ops.zeros((4, 64), "uint8"),
        "velocity_scale": ops.zeros((4, 2), "float16"),
        **changes,
    }
    x = ops.ones((4, 64))
    return Row(x, Adam8bitState(**tensors), x, 0)


def test_the_table_names_modules_and_algorithms():
    for (_, kernel, framework), module in KERNELS.items():
        assert module.startswith({"numba": "cpu.", "triton": "gpu."}[kernel])
        path = FOLDER.joinpath(*module.split(".")).with_suffix(".py")
        nodes = ast.parse(path.read_text()).body
        names = [getattr(node, "name", None) for node in nodes]
        assert "do_steps" in names, module
        assert framework in ("jax", "numpy", "tensorflow", "torch")
    algorithms = {algorithm for algorithm, _, _ in KERNELS}
    records = Adam8bitArguments, MicroAdamArguments
    assert algorithms == {record.ALGORITHM for record in records}


@pytest.mark.parametrize(
    "change, error",
    [
        ({"velocity_scale": (4, 1)}, ValueError),
        ({"momentum_codes": (4, 63)}, ValueError),
        ({"momentum_codes": "uint8"}, TypeError),
    ],
    ids=str,
)
def test_what_a_kernel_would_read_beyond_is_refused(change, error):
    pytest.importorskip("numba")
    ((name, value),) = change.items()
    right = getattr(row().state, name)
    if error is TypeError:
        wrong = ops.cast(right, value)
    else:
        wrong = ops.zeros(value, right.dtype)
    with pytest.raises(error, match=f"'{name}' must have (shape|dtype)"):
        do_steps([row(), row(**{name: wrong})], ARGUMENTS)
