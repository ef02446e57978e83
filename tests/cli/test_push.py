"""`push` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitcompact.checkpoint import hub_push

from .commands import Run


def test_the_folded_stage_of_the_workspace(run: Run, job: Path) -> None:
    done = run("push", "org/name", "--dry-run", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["repo"] == "org/name"
    files = {each["name"]: each["bytes"] for each in document["files"]}
    assert files["model.safetensors"] == (job / "folded" / "model.safetensors").stat().st_size
    shown = run("push", "org/name", job / "folded", "--dry-run")
    assert "Would go up to org/name" in shown.out
    assert all(name in shown.out for name in files)
    assert "nothing was sent" in shown.err


def test_what_cannot_be_pushed(run: Run, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_push, "HfApi", lambda: pytest.fail("the hub was asked"))
    for words, message in (
        ((), "no repository was named"),
        (("org/name", job / "converted", "--dry-run"), "in training form; fold it first"),
        (("org/name", job, "--dry-run"), "vitcompact"),
        (("org/name", "nowhere"), "nowhere is no directory"),
        (("org/name", "--workdir", "other"), "has no folded model"),
    ):
        refused = run("push", *words)
        assert (refused.code, message in refused.error) == (2, True), refused.err
    assert run("convert", "--ratio", 0.5, "--overwrite", "-q").code == 0
    assert "is newer than" in run("push", "org/name").error
