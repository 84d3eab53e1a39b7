"""What the files around the package say holds."""

import re
import tomllib
from pathlib import Path

import pytest

import keras_efficient
from tests.marks import once

pytestmark = once

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("guides/*.md")])


def read(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / name).read_text())


def test_citation_has_what_the_format_requires():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "keywords"} <= citation.keys()
    assert citation["authors"] and citation["authors"][0]["name"]
    assert citation["type"] == "software"


def test_citation_agrees_with_the_package():
    citation = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == keras_efficient.__version__
    assert citation["license"] == project["license"]
    assert citation["title"] == project["name"].replace("-", "_")


def test_workflow_runs_the_suite_on_every_backend():
    workflow = read(".github/workflows/test.yml")
    assert workflow["permissions"] == {"contents": "read"}
    strategy = workflow["jobs"]["test"]["strategy"]
    assert strategy["fail-fast"] is False
    backends = strategy["matrix"]["backend"]
    assert sorted(backends) == ["jax", "tensorflow", "torch"]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    assert oldest in strategy["matrix"]["python"]
    command = "python tools/test.py --backend ${{ matrix.backend }}"
    steps = workflow["jobs"]["test"]["steps"]
    assert command in [step.get("run") for step in steps]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(\s*([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert page.parent.joinpath(target).exists(), target
    for target, section in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" not in target:
            other = page.parent / target if target else page
            assert section in sections(other.read_text()), (target, section)


def sections(text):
    """The anchors of the headings of a page."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_commands_of_the_benchmarks_exist():
    text = (ROOT / "guides/benchmarks.md").read_text()
    scripts = set(re.findall(r"python ([\w/]+\.py)", text))
    assert {"tools/benchmark.py", "guides/quickstart.py"} <= scripts
    assert all((ROOT / script).exists() for script in scripts)
    names = set(re.findall(r"tools/benchmark\.py (\w+)", text))
    assert {"convergence", "end_to_end", "optimizers", "reversible"} <= names
    for name in names:
        assert ROOT.joinpath("tools/benchmarks", f"{name}.py").exists()
