"""Help and version: complete, readable at 80 columns, and quick, since nothing heavy is imported for them."""

from __future__ import annotations

import pytest

import vitcompact
from vitcompact.cli.app import VERBS

from .commands import Run


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
@pytest.mark.parametrize("width", [80, 100])
def test_help_fits_and_explains_every_option(run: Run, monkeypatch: pytest.MonkeyPatch, verb: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    result = run(verb, "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= width
    assert "--config" in result.out
    assert "…" not in result.out.replace("/…", "").replace(",…", "")


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith(f"vitcompact {vitcompact.__version__} (torch ")


def test_unknown_verb_and_option(run: Run) -> None:
    assert run("convrt").code == 2
    result = run("convert", "--rato", "0.5")
    assert result.code == 2
    assert "--ratio" in result.error
    assert "vitcompact convert --help" in result.error
