"""One command in its folder: ended, refused or run twice at one of its events, and judged."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from interruptions_cases import Case, furnish, run
from interruptions_checks import STATES, Expected, Units, contents, digest, hidden, names, units
from interruptions_events import Event, LineSignals, Watch, announce_native_writers, fault, kill, send, tear
from interruptions_memory import Memory

FAULTS = ("ENOSPC", "EIO", "EACCES", "EXDEV")
SIGNALS = ("SIGINT", "SIGTERM")
LIMIT = 300
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), and what it said on stderr."""

    code: int
    said: str

    def faults(self, codes: tuple[int, ...]) -> list[str]:
        """What is wrong with how it ended."""
        lines = [line for line in self.said.splitlines() if not line.startswith("warning: ")]
        found = [] if self.code in codes else [f"exit code {self.code}: {self.said.strip()[-300:]}"]
        if "Traceback" in self.said or len(lines) > 3 or (self.code and not lines):
            found.append(f"said in {len(lines)} lines: {self.said.strip()[-600:]}")
        return found


@dataclass
class Outcome:
    """What was tried on one case: interruptions by kind, and what was wrong after which."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)


class Trial:
    """One case in its folder.

    Args:
        work: where folders are made; the command always runs in `work/box`.
    """

    def __init__(self, name: str, case: Case, work: Path, memory: Memory) -> None:
        self.name, self.case, self.memory = name, case, memory
        self.box, self.start, self.log = work / "box", work / "start", work / "said"
        shutil.rmtree(self.start, ignore_errors=True)
        shutil.rmtree(self.box, ignore_errors=True)
        self.box.mkdir(parents=True)
        furnish(self.box)
        (self.box / "tmp").mkdir()
        for words in case.before:
            self._must(self.call(words))
        shutil.copytree(self.box, self.start)
        before, self.outcome = units(self.box), Outcome()
        self.settled: set[frozenset[tuple[str, str]]] = set()
        self._must(self.call(case.words))
        first = units(self.box)
        self.reset()
        self.events = self._enumerate()
        after = units(self.box)
        volatile = frozenset(name for name in after if first.get(name) != after[name])
        self.expected = Expected(before, after, volatile, frozenset(names(self.box)), self._passed())
        if volatile:
            self.outcome.wrong.append(("undisturbed", f"two runs differ in {sorted(volatile)}"))
        if left := hidden(self.box):
            self.outcome.wrong.append(("undisturbed", f"leaves {left}"))

    def reset(self) -> None:
        """The folder as it is before the command."""
        shutil.rmtree(self.box)
        shutil.copytree(self.start, self.box)

    def call(self, words: str, prepare: Callable[[], object] = lambda: None) -> Ended:
        """Run a command in the folder, in a process of its own."""
        return self.wait(self.fork(words, prepare))

    def fork(self, words: str, prepare: Callable[[], object] = lambda: None, log: str = "") -> tuple[int, Path]:
        """Begin to run a command; `prepare` is called first in its process."""
        said = self.log.with_name(self.log.name + log)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                with said.open("w", encoding="utf-8") as stream:
                    os.dup2(stream.fileno(), 1)
                    os.dup2(stream.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                os.chdir(self.box)
                tempfile.tempdir = str(self.box / "tmp")
                announce_native_writers()
                self.memory.install()
                self.memory.begin(f"{self.name} {_same(words)}", off=self.case.spills)
                prepare()
                code = run(words, self.case)
            finally:
                sys.settrace(None)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return child, said

    def wait(self, started: tuple[int, Path]) -> Ended:
        """Wait for a command; one that hangs is ended."""
        child, said = started
        alarm = threading.Timer(LIMIT, os.kill, (child, signal.SIGKILL))
        alarm.start()
        _, status = os.waitpid(child, 0)
        alarm.cancel()
        text = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] != "{"]
        return Ended(os.waitstatus_to_exitcode(status), _without_json(text))

    def _must(self, ended: Ended) -> None:
        if ended.code:
            raise SystemExit(f"{self.name}: exit code {ended.code}: {ended.said}")

    def _enumerate(self) -> list[Event]:
        """The events of the command, which runs to its end."""
        listed = self.log.with_name("events")

        def job() -> None:
            watch, passing = Watch(), Passing(self.box)
            sys.addaudithook(watch)
            sys.addaudithook(passing)
            plain = os._exit

            def leave(code: int) -> None:
                events, states = list(watch.events), list(passing.states)
                listed.write_text("\n".join(f"{each.name}\t{each.path}" for each in events), encoding="utf-8")
                self.log.with_name("passing").write_text("\n".join(map("\t".join, states)), encoding="utf-8")
                plain(code)

            os._exit = leave  # type: ignore[assignment]

        self._must(self.call(self.case.words, job))
        rows = listed.read_text(encoding="utf-8").splitlines()
        return [Event(*row.split("\t")) for row in rows]

    def _passed(self) -> dict[str, frozenset[str]]:
        """What states of a training the command put in place on its way, by their names."""
        rows = [row.split("\t") for row in self.log.with_name("passing").read_text(encoding="utf-8").splitlines()]
        return {name: frozenset(digest for other, digest in rows if other == name) for name, _ in rows}

    def interrupt(self, kind: str, number: int) -> None:
        """One interruption, and the run after it."""
        event, self_said = self.events[number], f"{kind} at {number} ({self.events[number].name})"
        act = {"kill": kill, "tear": tear}.get(kind) or (send(signal.Signals[kind]) if kind in SIGNALS else fault(kind))
        self.reset()
        ended = self.call(self.case.words, lambda: sys.addaudithook(Watch(number, act)))
        if kind in ("kill", "tear"):
            found = [] if ended.code == -signal.SIGKILL else [f"was not killed: {ended.code} {ended.said[-300:]}"]
        elif kind in SIGNALS:
            found = ended.faults((130, 0))
        else:
            found = ended.faults((2, 0))
        told = "moves them here" in ended.said  # by the next command
        clean = kind in SIGNALS or (kind in FAULTS and event.name not in ("os.remove", "os.rmdir") and not told)
        self._judge(kind, self_said, found, clean)

    def at_line(self, number: int) -> None:
        """An interruption before a line of the code that writes."""
        self.reset()
        ended = self.call(self.case.words, lambda: sys.settrace(LineSignals(number)))
        self._judge("lines", f"SIGINT at line {number}", ended.faults((130, 0)), clean=True)

    def count_lines(self) -> int:
        """How many lines of the code that writes the command comes to."""
        self.reset()
        listed = self.log.with_name("lines")

        def job() -> None:
            trace, plain = LineSignals(None), os._exit

            def leave(code: int) -> None:
                listed.write_text(str(trace.count), encoding="utf-8")
                plain(code)

            os._exit = leave  # type: ignore[assignment]
            sys.settrace(trace)

        self._must(self.call(self.case.words, job))
        return int(listed.read_text(encoding="utf-8"))

    def twice(self, number: int) -> None:
        """A second run while the first stands still before an event."""
        self.reset()
        (told, tell), (go, let) = os.pipe(), os.pipe()

        def stand(event: Event) -> None:
            os.write(tell, b"x")
            os.read(go, 1)

        first = self.fork(self.case.words, lambda: sys.addaudithook(Watch(number, stand)))
        os.read(told, 1)
        second = self.wait(self.fork(self.case.beside or self.case.words, log="-second"))
        os.write(let, b"x")
        ended = self.wait(first)
        for descriptor in (told, tell, go, let):
            os.close(descriptor)
        found = ended.faults((0, 2)) + second.faults((0, 2))
        if ended.code and second.code:
            found.append(f"both were refused: {ended.said[-300:]} / {second.said[-300:]}")
        if self.case.beside is None:
            self._judge("two", f"two at {number}", found, clean=True)
        else:
            self._judge_both(f"two at {number}", found, ended.code == 0, second.code == 0)

    def _judge_both(self, label: str, found: list[str], first: bool, second: bool) -> None:
        """Of two commands those that ended well have been done, one after the other, and nothing else."""
        now = units(self.box)
        allowed = self.one_after_the_other[first, second]
        if all(_differing(now, state) for state in allowed):
            nearest = min((_differing(now, state) for state in allowed), key=len, default=["nothing was to be done"])
            found.append(f"is as after no order of the two: {', '.join(nearest)}")
        self._note("two", label, found + ([f"left {left}"] if (left := hidden(self.box)) else []))

    @cached_property
    def one_after_the_other(self) -> dict[tuple[bool, bool], list[Units]]:
        """What the folder may hold after this command and the one beside it, by which of them ended well."""
        words, beside = self.case.words, self.case.beside or self.case.words
        orders: dict[tuple[bool, bool], list[tuple[str, ...]]] = {
            **{(True, False): [(words,)], (False, True): [(beside,)]},
            (True, True): [(words, beside), (beside, words)],
        }
        found: dict[tuple[bool, bool], list[Units]] = {(False, False): []}
        for done, lists in orders.items():
            found[done] = []
            for order in lists:
                self.reset()
                if all(self.call(each).code == 0 for each in order):
                    found[done].append(units(self.box))
        return found

    def _next_run(self) -> list[str]:
        """What is wrong after the run that follows; a folder from which one has gone well is not tried again."""
        found_here = contents(self.box, self.expected.volatile)
        if found_here in self.settled:
            return []
        again = self.call(self.case.next)
        if again.code:
            return [f"the next run ends with {again.code}: {again.said.strip()[-300:]}"]
        wrong = [f"after the next run {each}" for each in self.expected.faults_at_end(self.box)]
        if not wrong:
            self.settled.add(found_here)
        return wrong

    def _judge(self, kind: str, label: str, found: list[str], clean: bool) -> None:
        found = found + ([f"left {left}"] if clean and (left := hidden(self.box)) else [])
        found += self.expected.faults_of(self.box, stopped=kind in (*SIGNALS, "lines"))
        self._note(kind, label, found + self._next_run())

    def _note(self, kind: str, label: str, found: list[str]) -> None:
        self.outcome.tried[kind] += 1
        self.outcome.wrong += [(label, each) for each in found]
        for each in found:
            print(f"  {self.name}: {label}: {each}", flush=True)


class Passing:
    """Notes what states of a training are put in place, as an audit hook."""

    def __init__(self, box: Path) -> None:
        self.box, self.states = box, list[tuple[str, str]]()

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        """The hook."""
        if name == "os.rename" and str(args[1]).endswith(STATES):
            place = Path(args[1]).resolve().relative_to(self.box.resolve())
            self.states.append((str(place), digest(Path(args[0]))))


def _same(words: str) -> str:
    """A command by what it computes: that of `compact` depends on the clock, and is the same for the next run."""
    return words.replace(" --overwrite", "") if words.startswith("compact") else words


def _differing(now: Units, other: Units) -> list[str]:
    """Names of what two folders do not have alike."""
    return sorted(name for name in {**now, **other} if now.get(name) != other.get(name))


def _without_json(lines: Sequence[str]) -> str:
    """What was said beside the document of --json."""
    return "\n".join(line for line in lines if line[:1] not in (" ", "}", "[", "]"))
