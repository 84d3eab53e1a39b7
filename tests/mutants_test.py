import importlib.util
from pathlib import Path

from tests.marks import once

ROOT = Path(__file__).resolve().parents[1]


@once
def test_the_tree_has_the_texts_and_the_tests_of_all_mutants():
    path = ROOT / "tools" / "mutants.py"
    spec = importlib.util.spec_from_file_location("mutants", path)
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    found = mutants.load()
    assert len(found) >= 50
    assert mutants.problems(found) == []
