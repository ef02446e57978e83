"""Every situation of a new user passes; `python -m tests.situations` shows them as a table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from .place import Situation
from .verdicts import judge, situations


@pytest.mark.sweep
@pytest.mark.parametrize("situation", situations(), ids=lambda item: f"{item.kind}: {item.title}")
def test_passes(situation: Situation, tmp_path: Path) -> None:
    found = judge(situation, tmp_path)
    if found.verdict == "skipped":
        pytest.skip(found.reason)
    assert found.verdict == "pass", f"{found.verdict}: {found.reason}"


def test_every_kind_has_at_least_five() -> None:
    counts = Counter(situation.kind for situation in situations())
    assert sorted(counts) == list("ABCDEFGHIJ")
    assert min(counts.values()) >= 5
    assert sum(counts.values()) >= 78
