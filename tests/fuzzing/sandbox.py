"""Cases in a child process: what a hostile file may do to it is counted there, and ends with it."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from random import Random
from select import select
from typing import Any

import torch

from vitcompact.cli.spoken import spoken
from vitcompact.errors import VitCompactError

from .pickle_files import MARK
from .reader import Exit
from .readers import READERS
from .seeds import Seeds

MAX_SECONDS = 10.0
"""Processor time that any file may take."""
HANG_SECONDS = 240.0
"""Real time after which a child is ended: other work on the machine counts here."""
_POLL_SECONDS = 1.0
MAX_BYTES = 2 << 30
"""Memory beyond what the process had before: docs/security.md."""
MAX_LINES = 3
BATCH = 80
"""Cases of one child, as long as none of them ends it."""
REFUSED = (2, 3, 4)
_LIMIT = 6 << 30  # of the address space, so that a mistake does not take the machine down
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pty.spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
)


@dataclass(frozen=True)
class Case:
    """One file."""

    reader: str
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        outcome: `read`, `refused`, or what is wrong: `executed`, `untyped`, `slow`, `memory`, `left`, `message` or
            `died`.
        text: the message, or the traceback.
        seconds: processor time.
        peak: bytes of memory beyond those before.
    """

    reader: str
    seed: int
    outcome: str
    text: str = ""
    seconds: float = 0.0
    peak: int = 0

    @property
    def failed(self) -> bool:
        return self.outcome not in ("read", "refused")


def run(cases: Sequence[Case], seeds: Seeds, *, batch: int = BATCH) -> Iterator[Verdict]:
    """Run cases in forked children, each of which does many as long as none of them ends it."""
    waiting = list(cases)
    while waiting:
        done = yield from _child(waiting[:batch], seeds)
        waiting = waiting[done:]


def _child(cases: Sequence[Case], seeds: Seeds) -> Generator[Verdict, None, int]:
    """One child; returns how many of the cases are done."""
    for reader in {case.reader for case in cases}:
        prepare(seeds, reader)
    sys.stdout.flush()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _work(cases, seeds, sending)
    os.close(sending)
    done, pending = 0, b""
    try:
        while done < len(cases):
            ready = _wait(receiving, child)
            part = os.read(receiving, 1 << 20) if ready else b""
            if not part:
                os.kill(child, signal.SIGKILL)
                case, status = cases[done], os.waitpid(child, 0)[1]
                what = f"ended by signal {os.WTERMSIG(status)}" if ready else "ended: it took too long"
                child, done = 0, done + 1
                yield Verdict(case.reader, case.seed, "died" if ready else "slow", what)
                break
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                done += 1
                yield Verdict(**json.loads(line))
    finally:
        os.close(receiving)
        if child:
            os.waitpid(child, 0)
    return done


def _wait(receiving: int, child: int) -> bool:
    """Whether a verdict, or the end of the child, comes before its next case took too long."""
    started, before = time.monotonic(), _processor_time(child)
    while not select([receiving], [], [], min(_POLL_SECONDS, HANG_SECONDS))[0]:
        waited, spent = time.monotonic() - started, _processor_time(child) - before
        if waited > HANG_SECONDS or spent > 2 * MAX_SECONDS:
            return False
    return True


def _processor_time(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prepare(seeds: Seeds, reader: str) -> None:
    """Make the honest files of a reader before the fork, so that it is done once."""
    honest: dict[str, Callable[[], Any]] = {
        "onnx": lambda: seeds.exported(".onnx"),
        "xml": lambda: seeds.exported(".xml"),
        "pt2": lambda: seeds.exported(".pt2"),
        "workspace": lambda: seeds.job,
        "state": lambda: (seeds.job, seeds.converted),
        "curves": lambda: seeds.curves,
        "document": lambda: seeds.job,
        "transformers": lambda: seeds.transformers,
        "open_clip": lambda: seeds.open_clip,
        "torch": lambda: seeds.script,
        "arrays": lambda: seeds.five_channels,
        "flax": lambda: seeds.google,
    }
    _ = seeds.images, seeds.converted, seeds.weights
    for package in READERS[reader].needs:
        import_module(package)  # what a runtime does with the system when it is first loaded is no file's doing
    honest.get(reader, lambda: None)()


def _work(cases: Sequence[Case], seeds: Seeds, sending: int) -> None:
    """In the child: it never returns."""
    events: list[str] = []
    try:
        os.setsid()
        faulthandler.disable()  # a child that crashes is told by its signal
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)  # decoders write what they think of a file
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _LIMIT,) * 2)
        torch.set_num_threads(1)
        sys.addaudithook(lambda event, details: _watch(events, event, details))
        for case in cases:
            try:
                verdict = one(case, seeds, events)
            except BaseException:
                verdict = Verdict(case.reader, case.seed, "died", traceback.format_exc())
            os.write(sending, json.dumps(asdict(verdict)).encode() + b"\n")
    finally:
        os._exit(0)


def one(case: Case, seeds: Seeds, events: list[str]) -> Verdict:
    """Make one file and read it, in a folder of its own, which is the current one and the only place to write."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    work, temporary = root / "work", root / "tmp"
    work.mkdir()
    temporary.mkdir()
    before, tempfile.tempdir = Path.cwd(), str(temporary)
    os.environ["TMPDIR"] = str(temporary)
    os.chdir(work)
    try:
        read = READERS[case.reader].make(seeds, work, Random(f"{case.reader} {case.seed}"))
        names = _names(work)
        events.clear()
        _reset_peak()
        base, started = _memory("VmRSS"), time.process_time()
        outcome, text = _outcome(read)
        seconds, peak = time.process_time() - started, max(0, _memory("VmHWM") - base)
        wrong = _wrong(work, temporary, names, events, outcome, root)
        if wrong is not None:
            outcome, text = wrong
        elif outcome in ("read", "refused") and seconds > MAX_SECONDS:
            outcome = "slow"
        elif outcome in ("read", "refused") and peak > MAX_BYTES:
            outcome = "memory"
        return Verdict(case.reader, case.seed, outcome, text[-3000:], round(seconds, 3), peak)
    finally:
        os.chdir(before)
        tempfile.tempdir = None
        shutil.rmtree(root, ignore_errors=True)


def _outcome(read: Callable[[], object]) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            result = read()
    except VitCompactError as error:
        return _judged(spoken(str(error)), error.exit_code)
    except BaseException:
        return "untyped", traceback.format_exc()
    if isinstance(result, Exit):
        messages = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
        if result.code in (0, 6):
            return "read", ""
        return _judged("\n".join(messages), result.code)
    return "read", ""


def _judged(message: str, code: int) -> tuple[str, str]:
    if code not in REFUSED:
        return "untyped", f"exit code {code}: {message}"
    if len(message.splitlines()) > MAX_LINES or not message or len(message) > 2_000:
        return "message", message
    if any(not (character.isprintable() or character in "\n\t") for character in message):
        return "message", repr(message)
    return "refused", message


def _wrong(
    work: Path, temporary: Path, names: set[str], events: list[str], outcome: str, root: Path
) -> tuple[str, str] | None:
    """What must not be left, or have happened, after a case."""
    forbidden = [event for event in events if event.startswith(_FORBIDDEN)]
    if forbidden or any(path.name == MARK for path in root.rglob("*")):
        return "executed", "; ".join(forbidden[:5]) or f"{MARK}: {events[:5]}"
    if outside := [e for e in events if e.startswith("open ") and str(root) not in e]:
        return "left", "; ".join(outside[:5])
    if left := _names(temporary):
        return "left", f"in the folder for temporary files: {sorted(left)[:5]}"
    if outcome != "read" and (left := _names(work) - names):
        return "left", f"{sorted(left)[:5]}"
    return None


def _names(folder: Path) -> set[str]:
    """Everything in a folder, links not followed."""
    return {
        os.path.relpath(os.path.join(top, name), folder)
        for top, below, files in os.walk(folder)
        for name in (*below, *files)
    }


def _watch(events: list[str], event: str, details: tuple[Any, ...]) -> None:
    """Remember what a reader of files has no reason to do."""
    if event in _FORBIDDEN or event.startswith("os.spawn"):
        events.append(f"{event} {details!r:.200}")
    elif event == "open" and isinstance(details[0], (str, bytes)) and _writes(details[1], details[2]):
        path = os.path.abspath(os.fsdecode(details[0]))
        if not path.startswith(("/dev/null", "/proc/self/clear_refs")):
            events.append(f"open {path}")


def _writes(mode: object, flags: object) -> bool:
    writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writing or (isinstance(mode, str) and set(mode) & set("wax+")))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _memory(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
