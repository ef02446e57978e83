"""Help and version: complete, readable at 80 columns, and quick, since nothing heavy is imported for them."""

from __future__ import annotations

import re

import pytest

import vitcompact
from vitcompact.cli.app import VERBS
from vitcompact.cli.spoken import flags_of

from .commands import Run


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
@pytest.mark.parametrize("width", [80, 100])
def test_help_fits_and_explains_every_option(run: Run, monkeypatch: pytest.MonkeyPatch, verb: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    shown = {}
    for tier in ("--help", "--help-all"):
        result = run(verb, tier)
        assert result.code == 0
        assert max(map(len, result.out.splitlines())) <= width
        assert "--config" in result.out
        assert "…" not in result.out.replace("/…", "").replace(",…", "")
        shown[tier] = set(re.findall(r"(?m)^│ (--[a-z][a-z0-9-]*)", result.out))
    options = next(each for each in VERBS if each.name == verb).options
    flags = {name: flags_of(name, option)[0] for name, option in options.items()}
    rare = {flags[name] for name, option in options.items() if option.rare}
    assert {name for name, flag in flags.items() if flag not in shown["--help-all"]} == set()
    assert {flag for flag in flags.values() if flag not in shown["--help"]} == rare
    assert len(rare) == 0 or f"{len(rare)} more" in run(verb, "--help").out


@pytest.mark.parametrize("verb", ["compact", "convert", "analyze", "finetune"])
def test_targets_come_first(run: Run, verb: str) -> None:
    out = run(verb, "--help").out
    assert out.index("Targets") < out.index("─ Model" if "─ Model" in out else "─ Images")
    assert len(out.splitlines()) < 110


@pytest.mark.parametrize(("shell", "part"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_of_shells(run: Run, monkeypatch: pytest.MonkeyPatch, shell: str, part: str) -> None:
    monkeypatch.setenv("_VITCOMPACT_COMPLETE", f"source_{shell}")
    done = run("")
    assert (done.code, part in done.out) == (0, True)
    monkeypatch.setenv("_VITCOMPACT_COMPLETE", f"complete_{shell}")
    for typed, found in (("vitcompact comp", "compact"), ("vitcompact compact --preset ", "balanced")):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        assert found in run("").out


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
