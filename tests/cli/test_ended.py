"""What ends a command from outside: a polite kill, a closed terminal, a full disk for temporary files."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from vitcompact.calibration import store
from vitcompact.calibration.store import ActivationStore
from vitcompact.surgery import calibrated

from .commands import PAIR, SMALL, Run


def full(*_: Any) -> None:
    raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")


def unreadable(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def no_folder(*_: Any, **__: Any) -> None:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


@pytest.fixture
def spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; every activation goes there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(calibrated, "ActivationStore", lambda limit: ActivationStore(0))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_outside_training(
    number: signal.Signals, run: Run, images: Path, spilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, before = store.save_file, signal.getsignal(number)

    def save(*given: Any) -> None:
        plain(*given)
        assert list(spilled.iterdir())
        signal.raise_signal(number)

    monkeypatch.setattr(store, "save_file", save)
    result = run("convert", "test_vit", "out", *SMALL, *PAIR, "--data-dir", images)
    assert result.code == 130
    assert result.error == ("error: interrupted" if number == signal.SIGINT else f"error: ended by {number.name}")
    assert [path.name for path in spilled.parent.iterdir()] == ["temporary"]
    assert not list(spilled.iterdir())
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr("vitcompact.cli.verbs.families.run", lambda *_: signal.raise_signal(signal.SIGHUP))
    try:
        assert run("families").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("name", "fault"),
    [("save_file", full), ("scratch", no_folder), ("load_file", unreadable)],
)
def test_no_room_for_activations(
    name: str, fault: Callable[..., None], run: Run, images: Path, spilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"vitcompact.calibration.store.{name}", fault)
    result = run("convert", "test_vit", "out", *SMALL, *PAIR, "--data-dir", images)
    assert result.code == 2
    assert "TMPDIR" in result.error
    assert "--num-samples" in result.error
    assert os.listdir(spilled.parent) == ["temporary"]
    assert not os.listdir(spilled)
