"""Guides run, and so do the notebooks that are made of them."""

import ast
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import keras
import nbclient
import nbformat
import pytest

from tests.marks import once

ROOT = Path(__file__).resolve().parent.parent
GUIDES = sorted(ROOT.joinpath("guides").glob("*.py"))
FIELDS = (
    *("Title", "Author", "Date created", "Last modified", "Description"),
    "Accelerator",
)


def tool(name):
    path = ROOT / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_guides, py2nb = tool("check_guides"), tool("py2nb")
each_guide = pytest.mark.parametrize(
    "guide", GUIDES, ids=lambda path: path.stem
)


def notebook(guide, folder):
    """Return the cells of a guide's notebook, by way of the file."""
    output = folder / f"{guide.stem}.ipynb"
    py2nb.convert(guide, output)
    return json.loads(output.read_text(encoding="utf-8"))


def sources(cells, kind):
    return [
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == kind
    ]


def texts_and_code(guide):
    """Return the strings that stand alone in a guide, and its other nodes."""
    nodes = ast.parse(guide.read_text(encoding="utf-8")).body
    texts = [node for node in nodes if py2nb.is_text(node)]
    code = [node for node in nodes if node not in texts]
    return [node.value.value for node in texts], code


@once
def test_there_are_guides():
    assert {"quickstart", "char_lm"} <= {path.stem for path in GUIDES}


@once
@each_guide
def test_a_guide_has_the_header_and_says_what_it_does(guide):
    (header, about, *_), _ = texts_and_code(guide)
    fields = py2nb.header(header)
    assert tuple(fields) == FIELDS
    for name in ("Date created", "Last modified"):
        assert re.fullmatch(r"\d{4}/\d\d/\d\d", fields[name])
    assert about.startswith("\n## What this guide does\n")
    assert f"guides/{guide.name}" in about


@once
@each_guide
def test_a_guide_parses_its_options_in_main(guide):
    *_, last = texts_and_code(guide)[1]
    assert py2nb.is_launch(last)
    assert ast.unparse(last.body) == "main()"


@once
@each_guide
def test_the_notebook_is_in_the_format(guide, tmp_path):
    book = notebook(guide, tmp_path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        fields = {"id", "cell_type", "metadata", "source"}
        if cell["cell_type"] == "code":
            fields |= {"execution_count", "outputs"}
        assert set(cell) == fields
        assert isinstance(cell["source"], list) and cell["source"]


@once
@each_guide
def test_the_notebook_is_the_guide(guide, tmp_path):
    cells = notebook(guide, tmp_path)["cells"]
    texts, (*code, _) = texts_and_code(guide)
    *cells_of_code, launch = sources(cells, "code")
    for source in (*cells_of_code, launch):
        compile(source, guide.name, "exec")
    joined = ast.parse("\n".join(cells_of_code)).body
    assert [*map(ast.dump, joined)] == [*map(ast.dump, code)]
    title, *others = sources(cells, "markdown")
    assert title.startswith(f"# {py2nb.header(texts[0])['Title']}\n")
    assert others == [text.strip("\n") for text in texts[1:]]


@once
def test_comments_between_the_cells_are_kept():
    source = (
        '"""\nTitle: T\nDescription: D\n"""\n\n# a\n"""\nb\n"""\nx = 1  # c\n'
    )
    assert py2nb.cells_of(source, "") == [
        ("markdown", "# T\n\n\nD"),
        ("code", "# a"),
        ("markdown", "b"),
        ("code", "x = 1  # c"),
    ]


GUIDE = '''"""
Title: Title
Description: Description
"""

import argparse


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    found.append((parser.parse_args().epochs, __file__))


if __name__ == "__main__":
    main()
'''


@once
def test_main_gets_its_defaults_in_a_notebook(tmp_path, monkeypatch):
    guide = tmp_path / "guides" / "guide.py"
    guide.parent.mkdir()
    guide.write_text(GUIDE)
    jupyter = ["ipykernel_launcher.py", "-f", "kernel.json"]
    monkeypatch.setattr(sys, "argv", jupyter)
    found = []
    names = {"found": found, "__name__": "__main__"}
    for source in sources(notebook(guide, tmp_path)["cells"], "code"):
        exec(source, names)
    # As Jupyter does, from the folder of the notebook.
    assert found == [(3, "guides/guide.py")]


@once
def test_the_command_writes_beside_the_guide(tmp_path, monkeypatch, capsys):
    guide = tmp_path / "guide.py"
    guide.write_text(GUIDE)
    monkeypatch.setattr(sys, "argv", ["py2nb.py", str(guide)])
    py2nb.main()
    assert json.loads(guide.with_suffix(".ipynb").read_text())["cells"]
    other = str(tmp_path / "other.ipynb")
    monkeypatch.setattr(sys, "argv", ["py2nb.py", str(guide), "-o", other])
    py2nb.main()
    assert capsys.readouterr().out.endswith(f"Wrote {other}\n")
    assert Path(other).exists()


@pytest.mark.slow
def test_a_notebook_shows_its_figure(tmp_path):
    if keras.config.backend() != "torch":
        pytest.skip("takes long to compile")
    file = tmp_path / "quickstart.ipynb"
    py2nb.convert(ROOT / "guides" / "quickstart.py", file)
    book = nbformat.read(file, as_version=4)
    options = check_guides.ARGUMENTS["quickstart"].split()
    launch = book.cells[-1]
    launch.source = launch.source.replace(
        "[__file__]", f"[__file__, *{options}]"
    )
    nbclient.NotebookClient(
        book, resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert any("image/png" in out.get("data", ()) for out in launch.outputs)


@once
def test_all_guides_are_checked():
    assert set(check_guides.ARGUMENTS) == {path.stem for path in GUIDES}


@once
def test_a_guide_that_fails_is_told(tmp_path, monkeypatch, capsys):
    tmp_path.joinpath("good.py").write_text("print('fine')")
    tmp_path.joinpath("bad.py").write_text("raise ValueError('the reason')")
    monkeypatch.setattr(check_guides, "GUIDES", tmp_path)
    monkeypatch.setattr(check_guides, "ARGUMENTS", {"good": "", "bad": ""})
    command = ["check_guides.py", "--backend", "jax"]
    monkeypatch.setattr(sys, "argv", [*command, "good"])
    assert check_guides.main() == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", command)
    assert check_guides.main() == 1
    printed = capsys.readouterr().out
    assert "ValueError: the reason" in printed
    assert "fine" not in printed and printed.count("FAILED") == 1


# Compiling takes minutes: what has code for each of the backends that compile.
# The others are run there by `tools/check_guides.py`.
COMPILED = {"custom_training_loop"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide",  # quickstart runs as a notebook, above
    [path for path in GUIDES if path.stem != "quickstart"],
    ids=lambda path: path.stem,
)
def test_a_guide_runs(guide, tmp_path, monkeypatch, capsys):
    if keras.config.backend() != "torch" and guide.stem not in COMPILED:
        pytest.skip("takes long to compile")
    # In this process, which has imported the backend.
    arguments = check_guides.ARGUMENTS[guide.stem].split()
    monkeypatch.setattr(sys, "argv", [str(guide), *arguments])
    monkeypatch.chdir(tmp_path)
    if guide.stem.startswith("fine_tun"):
        pytest.importorskip("keras_hub")
    runpy.run_path(str(guide), run_name="__main__")
    assert capsys.readouterr().out
