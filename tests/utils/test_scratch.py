"""Folders for temporary files go with their process, or with the next one."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from vitcompact.utils.locks import beside
from vitcompact.utils.scratch import scratch


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_folder_is_gone_afterwards(tmp_path: Path) -> None:
    def job() -> None:
        with scratch() as folder:
            (folder / "x").touch()
            assert folder.stat().st_mode & 0o077 == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job()
    assert not list(tmp_path.iterdir())


def test_those_of_the_killed_go_and_those_in_use_stay(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:  # pragma: no cover
        with scratch() as folder:
            (folder / "x").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "vitcompact-of-somebody").mkdir()
    assert len(list(tmp_path.iterdir())) == 3  # the folder of the killed one, its lock, and somebody's
    with scratch() as first, scratch() as second:
        assert first != second
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {
            first,
            second,
            tmp_path / "vitcompact-of-somebody",
        }
    assert [path.name for path in tmp_path.iterdir()] == ["vitcompact-of-somebody"]


def test_one_that_could_not_be_removed_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, scratch():
        patched.setattr("vitcompact.utils.scratch.shutil.rmtree", lambda *_, **__: None)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch():
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_folder_was_never_made_goes_too(tmp_path: Path) -> None:
    beside(tmp_path / "vitcompact-0123456789abcdef", "lock").touch()
    with scratch():
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").touch()
    (tmp_path / "vitcompact-a").symlink_to(victim)
    beside(tmp_path / "vitcompact-a", "lock").symlink_to(tmp_path / "made")
    with scratch():
        pass
    assert (victim / "x").exists()
    assert not (tmp_path / "made").exists()
