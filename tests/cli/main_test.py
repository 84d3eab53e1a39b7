import importlib
import json
import sys

import keras
import pytest
from keras import layers

from keras_efficient.__main__ import main
from keras_efficient.utils import LayerMemory
from keras_efficient.utils import MemoryReport
from keras_efficient.utils import MemoryUsage

BACKEND = keras.config.backend()
to_numpy = keras.ops.convert_to_numpy


@pytest.fixture
def saved(tmp_path):
    model = keras.Sequential(
        [keras.Input((16,)), layers.Dense(64, name="wide"), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    path = tmp_path / "model.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def measures_nothing(monkeypatch):
    """For what is not about the report: measuring takes seconds."""

    def report(model, inputs, budget, verbose):
        size = len(keras.tree.flatten(inputs)[0])
        given = sum(x.nbytes for x in map(to_numpy, keras.tree.flatten(inputs)))
        layers = [LayerMemory("wide", 1, 1, 1, 1)]
        largest = budget and int(budget)
        usage = {"as it is": MemoryUsage(1, 1, 1, given, 1, 1, 1, largest)}
        return MemoryReport(BACKEND, size, budget, layers, usage)

    module = importlib.import_module("keras_efficient.cli.report")
    monkeypatch.setattr(module, "memory_report", report)


@pytest.mark.quick
def test_doctor_tells_versions_and_kernels(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"Keras runs on {BACKEND}" in printed and "portable" in printed
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == BACKEND
    assert found["versions"]["keras"] == keras.__version__
    assert found["devices"] and found["kernels"]


def test_report_of_a_saved_model(saved, capsys, tmp_path):
    picture = tmp_path / "memory.png"
    arguments = ["report", saved, "--batch-size", "8", "--json"]
    arguments += ["--budget", "64MiB", "--plot", str(picture)]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch_size"] == 8 and found["budget"] == 64 / 1024
    assert found["layers"][0]["name"] == "wide"
    assert found["usage"]["MicroAdam"]["largest_batch"] > 8
    assert picture.exists()


def test_report_of_inputs_of_unknown_size(capsys, tmp_path, measures_nothing):
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, layers.Embedding(10, 4)(tokens))
    path = str(tmp_path / "tokens.keras")
    model.save(path)
    assert main(["report", path]) == 1
    assert "--sequence-length" in capsys.readouterr().err
    for arguments in (["--sequence-length", "6"], ["--shape", "6"]):
        assert main(["report", path, "--json", *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        batch = found["usage"]["as it is"]["batch"]
        assert batch == 32 * 6 * 4
    assert main(["report", path, "--shape", "6", "--shape", "6"]) == 1
    assert "has 1 inputs" in capsys.readouterr().err


def test_a_plan_is_lines_to_paste(saved, capsys):
    assert main(["report", saved, "--plan"]) == 1
    assert "--budget" in capsys.readouterr().err
    assert main(["report", saved, "--plan", "--budget", "64MiB"]) == 0
    assert capsys.readouterr().out.strip() == ""  # it fits as it is
    assert main(["report", saved, "--plan", "--budget", "1KiB"]) == 1
    lines = capsys.readouterr().out
    assert "keras" in lines
    compile(lines, "plan", "exec")


def test_custom_classes_come_from_a_module(
    tmp_path, capsys, monkeypatch, measures_nothing
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_layers_of_a_test.py").write_text(
        "import keras\n\n\n"
        '@keras.saving.register_keras_serializable("of_a_test")\n'
        "class Doubled(keras.layers.Dense):\n"
        "    def call(self, x):\n"
        "        return 2 * super().call(x)\n"
    )
    monkeypatch.syspath_prepend("")
    module = importlib.import_module("my_layers_of_a_test")
    model = keras.Sequential([keras.Input((4,)), module.Doubled(3)])
    model.save("custom.keras")
    name = keras.saving.get_registered_name(module.Doubled)
    del keras.saving.get_custom_objects()[name]
    del sys.modules["my_layers_of_a_test"], module
    assert main(["report", "custom.keras"]) == 1
    assert "--import" in capsys.readouterr().err
    assert (
        main(["report", "custom.keras", "--import", "my_layers_of_a_test"]) == 0
    )
    assert "wide" in capsys.readouterr().out


def test_a_legacy_file_is_loaded_without_what_is_lost(
    tmp_path, capsys, measures_nothing
):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])

    def own_loss(y_true, y_pred):
        return keras.ops.mean(y_pred - y_true)

    model.compile("sgd", own_loss)
    path = str(tmp_path / "legacy.h5")
    model.save(path)
    assert main(["report", path, "--json"]) == 0
    printed = capsys.readouterr()
    assert "without its optimizer" in printed.err
    assert json.loads(printed.out)["layers"]


def test_doctor_asks_for_a_gpu(capsys, monkeypatch):
    assert main(["doctor", "--gpu"]) == 1
    assert f"{BACKEND} sees no GPU" in capsys.readouterr().err


def test_report_fails_where_nothing_fits(saved, capsys, measures_nothing):
    assert main(["report", saved, "--budget", "0.001MB"]) == 1
    assert "of a training step" in capsys.readouterr().out


def test_errors_are_one_line(capsys, tmp_path):
    path = tmp_path / "missing.keras"
    for message in ("There is no file", "is neither a .keras file nor"):
        assert main(["report", str(path)]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and message in printed.err
        assert "missing.keras" in printed.err and printed.err.count("\n") == 1
        assert "Traceback" not in printed.err and not printed.out
        path.write_text("no model")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required"),
        (["report", "x.keras", "--budget", "much"], "'much' is not a number"),
        (["report", "x.keras", "--budget", "8"], "8 of what? Write 8GiB"),
        (["report", "x.keras", "--batch-size", "0"], "0 is not at least 1"),
    ],
)
def test_wrong_arguments_end_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_of_three_ways(capsys):
    arguments = ["bench", "--depth", "2", "--width", "32", "--steps", "2"]
    assert main([*arguments, "--batch-size", "64", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kept = {name: row["bytes kept"] for name, row in rows.items()}
    assert kept["reversible, Adam"] < kept["plain, Adam"]
    assert all(row["seconds a step"] > 0 for row in rows.values())
