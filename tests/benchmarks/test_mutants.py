"""What `benchmarks/mutants.py` recorded, and how it finds a recorded fault again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mutants
import mutants_tests
import pytest
from mutants_sites import mutants_of

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "mutants.json"


def test_the_record_is_what_the_docs_say_of_it() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert len({(each["seed"], each["number"]) for each in recorded}) == len(recorded)
    ends = {end: sum(each["end"] == end for each in recorded) for end in ("caught", "gone", "survived")}
    assert sum(ends.values()) == len(recorded)
    assert ends["survived"] <= len(recorded) / 20
    assert all(each.get("reason") for each in recorded if each["end"] != "caught")
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    told = "{caught} of {total} are caught, {gone} are in lines that are no more, and {survived} survive"
    assert told.format(total=len(recorded), **ends) in page


def test_every_file_of_a_group_has_tests() -> None:
    for patterns in mutants_tests.GROUPS.values():
        for pattern in patterns:
            files = [path for path in (ROOT / "vitcompact").glob(pattern) if path.name != "__init__.py"]
            assert files, pattern
            for path in files:
                for test in mutants_tests.tests_of(str(path.relative_to(ROOT))):
                    assert (ROOT / "tests" / test).exists(), test


def test_a_fault_is_found_again_where_its_line_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    path = tmp_path / "some.py"
    path.write_text("def f(a, b):\n    return a + b * 1 + 1\n", encoding="utf-8")
    found = mutants_of(path, tmp_path)
    assert [each.after for each in found if each.kind == "number"] == ["2", "2"]
    recorded = [each.to_json() for each in found]
    path.write_text("import os\n\n\nif os:\n    def f(a, b):\n        return a + b * 1 + 1\n", encoding="utf-8")
    for before, (_, after) in zip(found, mutants.found_again(recorded), strict=True):
        assert after is not None
        assert after.line == before.line + 4
        assert after.applied(path.read_text(encoding="utf-8")).splitlines()[-1].strip() == (
            before.applied("def f(a, b):\n    return a + b * 1 + 1\n").splitlines()[-1].strip()
        )
    path.write_text("def f(a, b):\n    return b + a * 1 + 1\n", encoding="utf-8")
    assert [after for _, after in mutants.found_again(recorded)] == [None] * len(recorded)
