"""Files and folders that are complete or absent: swaps, locks, and what killed processes leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitcompact.errors import UsageError
from vitcompact.utils import files, locks
from vitcompact.utils.files import (
    beside,
    claimed,
    json_text,
    publish,
    publish_files,
    replace_file,
    restored,
    staged,
    tidied,
    write_file,
)
from vitcompact.utils.locks import exclusive

CAN_EXCHANGE = [pytest.param(True, id="exchange"), pytest.param(False, id="rename")]


def write_folder(path: Path, content: str) -> None:
    with staged(path) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(content)
        publish(folder, path)


def content_of(path: Path) -> set[str]:
    return {item.read_text() for item in path.iterdir()}


@pytest.fixture(params=CAN_EXCHANGE)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a system that exchanges two names in one step."""
    if not request.param:
        monkeypatch.setattr(files, "exchange", lambda first, second: False)


@pytest.mark.usefixtures("system")
def test_a_folder_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for content in ("first", "second"):
        write_folder(out, content)
        assert content_of(out) == {content}
        assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files.exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError, match="No such file"):
        files.exchange(tmp_path / "a", tmp_path / "c")


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_folder(out, "first")
    monkeypatch.setattr(files, "exchange", lambda first, second: False)
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:  # the old output has moved away, the new one has not arrived
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(out, "second")
    assert content_of(out) == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def killed_before(event: int, job: Callable[[], Any]) -> bool:
    """Run `job` in a child that is killed before its `event`-th look at or change of the disk; whether it was."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        seen = 0

        def watch(name: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if name.startswith(("open", "os.", "shutil.", "vitcompact.", "glob", "pathlib")):
                seen += 1
                if seen == event + 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            job()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.usefixtures("system")
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, "old")
    event, seen = 0, set()
    while killed_before(event, lambda: write_folder(out, "new")):
        content = content_of(restored(out))
        assert content in ({"old"}, {"new"}), f"killed before event {event}"
        seen |= content
        write_folder(out, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["out"], f"killed before event {event}"
        event += 1
    assert event > 10
    assert seen == {"old", "new"}


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_file(path, "old")
    event = 0
    while killed_before(event, lambda: write_file(path, "new")):
        assert path.read_text() in ("old", "new")
        write_file(path, "old")
        assert [item.name for item in tmp_path.iterdir()] == ["state.json"], f"killed before event {event}"
        event += 1
    assert event > 8


def write_pair(path: Path, content: str, weights: bool = True) -> None:
    with claimed(path), staged(path) as folder:
        (folder / path.name).write_text(content)
        if weights:
            (folder / f"{path.name}.data").write_text(content)
        publish_files(folder, path, [path.with_name(f"{path.name}.data")])


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False)])
def test_files_that_need_each_other_are_never_mixed(before: bool, after: bool, tmp_path: Path) -> None:
    """With weights in a second file, or without, before and after."""
    path, event = tmp_path / "model", 0
    write_pair(path, "old", before)
    while killed_before(event, lambda: write_pair(path, "new", after)):
        if path.exists() and (tmp_path / "model.data").exists() and path.read_text() == "new":
            assert (tmp_path / "model.data").read_text() == ("new" if after else "old")
        content = restored(path).read_text()
        assert (tmp_path / "model.data").exists() is (before if content == "old" else after)
        assert {item.read_text() for item in tmp_path.iterdir() if item.is_file() and item.name[0] != "."} == {content}
        write_pair(path, "old", before)
        names = ["model", "model.data"] if before else ["model"]
        assert sorted(item.name for item in tmp_path.iterdir()) == names, f"killed before event {event}"
        event += 1
    assert event > 8


@pytest.mark.parametrize(("failing", "left"), [(1, False), (2, True)])
def test_files_that_cannot_all_be_moved(
    failing: int, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All as before where nothing has moved yet; else what is ready is finished by whoever comes next."""
    path, replace, calls = tmp_path / "model", Path.replace, []
    write_pair(path, "old")

    def refused(self: Path, *target: Path, **_: bool) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return replace(self, *target)

    with monkeypatch.context() as patched:
        if failing == 2:
            patched.setattr(Path, "replace", refused)
        else:
            patched.setattr(files, "_take_places", refused)
        with pytest.raises((OSError, UsageError), match="Input/output error"):
            write_pair(path, "new")
    assert (beside(path, "ready").exists()) is left
    assert restored(path).read_text() == ("new" if left else "old")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "model.data"]


def test_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(beside(out, "old"), "old")
    write_folder(beside(out, "new"), "unfinished")
    assert content_of(restored(out)) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from vitcompact.utils.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run of vitcompact"), exclusive(path):
            pass
        other.kill()
        other.wait()
    with exclusive(path) as outermost, exclusive(path) as again:
        assert (outermost, again) == (True, False)
    assert [item.name for item in tmp_path.iterdir()] == []


def test_folders_made_for_a_lock_go_with_it_if_they_stay_empty(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "kept").touch()
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_lock_whose_file_was_taken_away_is_taken_anew(tmp_path: Path) -> None:
    """Many processes wait for one name, whose file goes with each lock: never two at once."""
    path, inside, most = tmp_path / "out", [0], [0]

    def once() -> None:
        with exclusive(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=once) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_somebody_removes_while_it_is_taken_is_left_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its holder before does, just when the next one has opened the file: nobody else would see such a lock."""
    path, flock, taken = tmp_path / "out", locks.fcntl.flock, []

    def late(descriptor: int, flags: int) -> None:
        flock(descriptor, flags)
        taken.append(descriptor)
        if len(taken) == 1:
            beside(path, "lock").unlink()

    monkeypatch.setattr(locks.fcntl, "flock", late)
    before = sorted(os.listdir("/dev/fd"))
    with exclusive(path):
        assert len(taken) == 2
        assert os.path.samestat(os.fstat(taken[1]), beside(path, "lock").stat())
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_lock_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with exclusive(tmp_path / "out"):
        assert beside(tmp_path / "out", "lock").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_lock_that_cannot_be_removed_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays, and the next one takes it over."""

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        with exclusive(tmp_path / "out"):
            pass
    assert [item.name for item in tmp_path.iterdir()] == [beside(tmp_path / "out", "lock").name]
    with exclusive(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_errors_of_the_job_are_not_taken_for_those_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), claimed(tmp_path / "out"):
        raise FileNotFoundError("mine")


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*nothing was written"):
        write_file(tmp_path / "file" / "x", "y")


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(5, "Input/output error")

    with pytest.raises(UsageError, match="Input/output error"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


def test_all_content_reaches_the_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a complete-looking folder of empty files."""
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path.name, (tmp_path / "out").exists())))
    write_folder(tmp_path / "out", "x")
    staged_name = beside(tmp_path / "out", files.NEW).name
    assert sorted(synced[:3]) == sorted([("a", False), ("b", False), (staged_name, False)])
    assert synced[3:] == [(tmp_path.name, True)]
    (tmp_path / "out").rename(tmp_path / "gone")
    synced.clear()
    write_file(tmp_path / "out", "y")
    assert synced == [("out", False), (tmp_path.name, True)]


def write_single(path: Path, content: str) -> None:
    write_file(path, content)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("write", [write_folder, write_single, write_pair], ids=["folder", "file", "files"])
def test_an_error_after_the_name_was_given_does_not_say_that_nothing_was_written(
    write: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "place" / "out", files.sync
    write(out, "old")

    def late(path: Path) -> None:
        if path == out.parent:
            raise OSError(5, "Input/output error")
        plain(path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", late)
        with pytest.raises(UsageError, match=r"out is written, but .* Input/output error") as refused:
            write(out, "new")
    assert "nothing was written" not in str(refused.value)
    assert (content_of(out) if out.is_dir() else {out.read_text()}) == {"new"}
    restored(out)
    assert not [name for name in os.listdir(out.parent) if name.startswith(".")]


@pytest.mark.parametrize("kind", ["lock", "new", "old", "ready"])
def test_a_folder_is_tidied_of_what_killed_processes_left(kind: str, tmp_path: Path) -> None:
    """Also of what the next run does not write again; not of what another run is writing."""
    path, other = tmp_path / "best", tmp_path / "held"
    path.write_text("whole")
    left = beside(path, kind)
    if kind == "lock":
        left.touch()
    else:
        left.mkdir()
    (tmp_path / ".somebody.vitcompact-notes").touch()
    with exclusive(other):
        tidied(tmp_path)
        assert beside(other, "lock").exists()
    assert sorted(os.listdir(tmp_path)) == [".somebody.vitcompact-notes", "best"]
    assert path.read_text() == "whole"
    tidied(tmp_path / "nowhere")


def test_json_ends_its_last_line() -> None:
    assert json_text({"a": "é"}) == '{\n  "a": "é"\n}\n'
