"""A bounded run of the fuzzer (`python -m tests.fuzzing` is the whole one), and that it finds what it looks for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcompact.errors import CheckpointError, UsageError

from . import sandbox
from .reader import Reader
from .readers import READERS
from .sandbox import Case, run
from .seeds import Seeds

QUICK: tuple[str, ...] = (
    "safetensors",
    "torch",
    "flax",
    "index",
    "beside",
    "timm config",
    "own config",
    "record",
    "card",
    "plan",
    "options",
    "recipe",
    "curves",
)
QUICK += ("class map", "images", "tar", "arrays", "open_clip", "names")
"""Readers whose files are made within a moment; the others are a sweep."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    return Seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.broad
def test_no_file_wins(seeds: Seeds) -> None:
    cases = [Case(name, seed) for name in QUICK for seed in range(6)]
    verdicts = list(run(cases, seeds, batch=len(cases)))
    assert [verdict for verdict in verdicts if verdict.failed] == []
    assert len(verdicts) == len(cases)
    assert {verdict.outcome for verdict in verdicts} == {"read", "refused"}


@pytest.mark.sweep
@pytest.mark.parametrize("name", READERS)
def test_no_file_of_any_reader_wins(name: str, seeds: Seeds) -> None:
    for package in READERS[name].needs:
        pytest.importorskip(package, reason=f"needs {package}")
    assert [verdict for verdict in run([Case(name, seed) for seed in range(1000, 1040)], seeds) if verdict.failed] == []


def _hog() -> None:
    del [bytearray(sandbox.MAX_BYTES + (1 << 28))][0]


def _refuse(text: str) -> Callable[[], None]:
    def refuse() -> None:
        raise CheckpointError(text)

    return refuse


def _write_and_refuse(path: Path) -> None:
    path.write_text("x")
    raise UsageError("no")


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "shell": (lambda: os.system("true"), "executed"),
    "mark": (lambda: Path("EXECUTED").touch(), "executed"),
    "process": (lambda: subprocess.run(["true"], check=False), "executed"),
    "untyped": (lambda: 1 / 0, "untyped"),
    "memory": (_hog, "memory"),
    "leftover": (lambda: _write_and_refuse(Path("left")), "left"),
    "elsewhere": (lambda: _write_and_refuse(Path("/tmp/fuzz-elsewhere")), "left"),
    "crash": (lambda: os.abort(), "died"),
    "hang": (lambda: time.sleep(9), "slow"),
    "fine": (_refuse("give another"), "refused"),
    "escapes": (_refuse("\x1b[31m" * 3), "refused"),
    "endless": (_refuse("x\n" * 90_000), "refused"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_noticed(name: str, seeds: Seeds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of failure, as a reader would have it."""
    call, outcome = BAD[name]
    monkeypatch.setitem(READERS, "bad", Reader("bad", lambda seeds, folder, rng: call))
    monkeypatch.setattr(sandbox, "HANG_SECONDS", 2.0 if name == "hang" else 40.0)
    monkeypatch.setattr(sandbox, "MAX_BYTES", 1 << 28)
    (verdict,) = run([Case("bad", 0)], seeds)
    assert verdict.outcome == outcome, verdict
    Path("/tmp/fuzz-elsewhere").unlink(missing_ok=True)


def test_a_case_is_the_same_again(seeds: Seeds, tmp_path: Path) -> None:
    """A seed says what the file is."""
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        READERS["torch"].make(seeds, folder, sandbox.Random("torch 7"))
        contents.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert contents[0] == contents[1]
