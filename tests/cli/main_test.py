import json

import keras
import pytest
from keras import layers

from keras_efficient.__main__ import main

BACKEND = keras.config.backend()


@pytest.fixture
def saved(tmp_path):
    model = keras.Sequential(
        [keras.Input((16,)), layers.Dense(64, name="wide"), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    path = tmp_path / "model.keras"
    model.save(path)
    return str(path)


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


def test_report_fails_where_nothing_fits(saved, capsys):
    assert main(["report", saved, "--budget", "0.001MB"]) == 1
    assert "as it is" in capsys.readouterr().out


def test_errors_are_one_line(capsys, tmp_path):
    assert main(["report", str(tmp_path / "missing.keras")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and "missing.keras" in printed.err
    assert "Traceback" not in printed.err and not printed.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required"),
        (["report", "x.keras", "--budget", "much"], "'much' is not a number"),
        (["report", "x.keras", "--batch-size", "0"], "0 is not at least 1"),
    ],
)
def test_wrong_arguments_end_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_of_three_ways(capsys):
    arguments = ["bench", "--depth", "4", "--width", "32", "--steps", "2"]
    assert main([*arguments, "--batch-size", "64", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kept = {name: row["bytes kept"] for name, row in rows.items()}
    assert kept["reversible, Adam"] < kept["plain, Adam"]
    assert all(row["seconds a step"] > 0 for row in rows.values())
