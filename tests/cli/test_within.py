"""`convert` with a limit instead of a size."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import vitcompact
from vitcompact.cli.verbs import within

from .commands import SMALL, Run


def test_the_command(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "convert_within", partial(vitcompact.convert_within, tries=2))
    given = (*SMALL, "--data-dir", str(images), "--ops", "factorize,neurons")
    done = run("convert", "test_vit", "out", *given, "--min-cosine", "0.001", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["within"]["held"]
    assert found["macs"]["after"] <= found["within"]["share"] * found["macs"]["before"]
    assert vitcompact.load("out").vitcompact_plan is not None
    missed = run("convert", "test_vit", "best", *given, "--min-cosine", "1")
    assert missed.code == 6
    assert "--min-cosine 1 was missed; the best that was found is in" in missed.err
    assert "missed" in missed.out
    assert vitcompact.load("best").vitcompact_plan is not None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ("--max-drop", "0.5", "--target-macs", "0.8"),
            "--max-drop decides how much is compacted: leave out --target-macs",
        ),
        (("--min-cosine", "0.9", "--ratio", "0.5"), "leave out --ratio"),
        (("--min-cosine", "0.9", "--allocation", "global"), "leave out --allocation"),
        (("--min-cosine", "0.9", "--max-drop", "1"), "give one of --max-drop and --min-cosine"),
        (("--min-agreement", "2"), "--min-agreement must be above 0 and at most 1"),
        (("--max-drop", "0.5"), "--max-drop is judged on labelled images: give --eval-data-dir"),
    ],
)
def test_wrong_words(words: tuple[str, ...], part: str, run: Run, images: Path) -> None:
    result = run("convert", "X", "OUT", "--data-dir", str(images / "train"), *words)
    assert result.code == 2
    assert part in result.error
