"""docs/determinism.md: each line names a test that exists, with the tolerance that the test holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.surgery import test_batching
from vitcompact.folding.fold import TOLERANCE

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "::" in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[-1].strip("`").rpartition("::")[2])
def test_each_line_has_its_test(row: list[str]) -> None:
    file, _, name = row[-1].strip("`").partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_tolerances_are_those_of_the_tests() -> None:
    assert len(ROWS) == 8
    numbers = {row[-1].strip("`"): (row[3], row[4]) for row in ROWS}
    batching = [numbers[test] for test in numbers if "test_batching.py" in test and "luck" not in test]
    assert {(float(w), float(o)) for w, o in batching} == {(test_batching.WEIGHTS, test_batching.OUTPUTS)}
    folded = next(outputs for test, (_, outputs) in numbers.items() if "test_fold.py" in test)
    assert float(folded) == TOLERANCE
