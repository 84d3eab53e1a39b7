"""The list of traps in `pitfalls.md` names the files that test them."""

import re
from pathlib import Path

import pytest

from tests.marks import once

TESTS = Path(__file__).resolve().parent


@once
@pytest.mark.quick
def test_the_list_agrees_with_the_names_of_the_tests():
    listed, found = set(), set()
    for line in (TESTS / "pitfalls.md").read_text().splitlines():
        row = re.match(r"\| (\d\d) \|.*\|([^|]*)\|$", line)
        if row:
            number, files = row.groups()
            listed |= {(number, name) for name in re.findall("`(.*?)`", files)}
    for path in TESTS.rglob("*_test.py"):
        name = path.relative_to(TESTS).as_posix()
        numbers = re.findall(r"def test_pitfall_(\d\d)_", path.read_text())
        found |= {(number, name) for number in numbers}
    assert listed == found
    numbers = {number for number, _ in found}
    assert numbers == {f"{i:02d}" for i in range(1, 24)}
