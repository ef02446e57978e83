"""Help and version: complete, readable at 80 columns, and quick, since nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitcompact
from vitcompact.cli.app import VERBS

from .commands import Run

LIGHT_START = """
import sys, types
package = types.ModuleType("vitcompact")
package.__path__, package.__version__ = [sys.argv[1]], "0"
sys.modules["vitcompact"] = package  # what the package itself imports is not the command line's affair
from vitcompact.cli.app import main
codes = [main([]), main(["--version"]), *(main([verb, "--help"]) for verb in sys.argv[2:])]
heavy = {"torch", "timm", "numpy", "PIL", "matplotlib"} & sys.modules.keys()
assert codes == [2] + [0] * (len(codes) - 1), codes
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy() -> None:
    folder = Path(vitcompact.__file__).parent
    verbs = [verb.name for verb in VERBS]
    done = subprocess.run([sys.executable, "-c", LIGHT_START, str(folder), *verbs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
