"""Whether anything is lost or left behind when a command that writes is ended, refused by the disk, or run twice.

    python benchmarks/interruptions.py
    python benchmarks/interruptions.py --cases convert fold --kinds kill --every 3

Every change that a command makes on the disk is an event (audit hooks). Each kind of interruption happens at each event
in turn, in a process forked from one that has loaded everything:

- `kill`: SIGKILL before the change; `tear`: in the middle of it, with an empty or half-written file.
- `ENOSPC`, `EIO`, `EACCES`, `EXDEV`: the change is refused.
- `SIGINT`, `SIGTERM`: the signal arrives before the change; `lines`: SIGINT before each line of the code that writes
  and locks.
- `two`: a second run of the same command while the first stands still before the change.

After it, everything has to be as before or as it was to become, and whole. A command that was not killed has left
nothing unfinished and said one thing in at most three lines, with exit code 2 or 130 (but for a file whose removal was
refused, and for files that it says the next command moves). After the next run, all is as if nothing had happened. The
table has one line a command; what was wrong is printed as it is found, and the exit code is 1 where anything was.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import torch
from interruptions_cases import CASES, Case, Memory, furnish, run
from interruptions_checks import Expected, contents, hidden, names, units
from interruptions_events import (
    Event,
    LineSignals,
    Watch,
    announce_native_writers,
    can_tear,
    fault,
    kill,
    send,
    tear,
)

FAULTS = ("ENOSPC", "EIO", "EACCES", "EXDEV")
SIGNALS = ("SIGINT", "SIGTERM")
KINDS = ("kill", "tear", *FAULTS, *SIGNALS, "lines", "two")
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
        volatile = frozenset(
            name for name in after if first.get(name) != after[name] or name.endswith(("best.safetensors", ".html"))
        )
        self.expected = Expected(before, after, volatile, frozenset(names(self.box)))
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
                self.memory.begin(f"{self.name} {words}", off=self.case.spills)
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
            watch = Watch()
            sys.addaudithook(watch)
            plain = os._exit

            def leave(code: int) -> None:
                events, watch.act = list(watch.events), None
                listed.write_text("\n".join(f"{each.name}\t{each.path}" for each in events), encoding="utf-8")
                plain(code)

            os._exit = leave  # type: ignore[assignment]

        self._must(self.call(self.case.words, job))
        rows = listed.read_text(encoding="utf-8").splitlines()
        return [Event(*row.split("\t")) for row in rows]

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
        second = self.wait(self.fork(self.case.words, log="-second"))
        os.write(let, b"x")
        ended = self.wait(first)
        for descriptor in (told, tell, go, let):
            os.close(descriptor)
        found = ended.faults((0, 2)) + second.faults((0, 2))
        if ended.code and second.code:
            found.append(f"both were refused: {ended.said[-300:]} / {second.said[-300:]}")
        self._judge("two", f"two at {number}", found, clean=True)

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
        self.outcome.tried[kind] += 1
        found = found + ([f"left {left}"] if clean and (left := hidden(self.box)) else [])
        found += self.expected.faults_of(self.box)
        found += self._next_run()
        self.outcome.wrong += [(label, each) for each in found]
        for each in found:
            print(f"  {self.name}: {label}: {each}", flush=True)


def _without_json(lines: Sequence[str]) -> str:
    """What was said beside the document of --json."""
    return "\n".join(line for line in lines if line[:1] not in (" ", "}", "[", "]"))


def tried(trial: Trial, kinds: Sequence[str], every: int) -> None:
    """Each kind of interruption at every `every`-th event."""
    for kind in kinds:
        if kind == "lines":
            for number in range(0, trial.count_lines(), every):
                trial.at_line(number)
            continue
        if kind == "SIGTERM" and trial.case.words.startswith("python"):
            continue  # nobody listens to it there: it is a kill
        for number in range(0, len(trial.events), every):
            event = trial.events[number]
            if kind == "two":
                if event.name in ("open", "os.rename", "vitcompact.exchange"):
                    trial.twice(number)
            elif (kind != "tear" or can_tear(event)) and (kind not in FAULTS or event.can(kind)):
                trial.interrupt(kind, number)


def prepared(work: Path) -> Memory:
    """Load what every command needs, and let long calls be remembered in `work`."""
    torch.set_num_threads(1)
    logging.getLogger("vitcompact").setLevel(logging.WARNING)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)  # a job in the background ignores the first
    memory, before = Memory(work / "memory"), Path.cwd()
    (work / "warm").mkdir()
    furnish(work / "warm")
    os.chdir(work / "warm")
    with redirect_stdout(StringIO()):  # what is imported late is imported now
        run(CASES["convert"].words, CASES["convert"])
    os.chdir(before)
    return memory


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 where anything was lost, left behind or not said well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], metavar="CASE")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], metavar="KIND")
    parser.add_argument("--every", type=int, default=1, help="take every N-th event")
    args = parser.parse_args(argv)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="interruptions-") as folder:
        memory = prepared(Path(folder))
        for name in args.cases:
            began = time.monotonic()
            trial = Trial(name, CASES[name], Path(folder), memory)
            tried(trial, args.kinds, args.every)
            outcomes[name] = trial.outcome
            counts = ", ".join(f"{kind} {trial.outcome.tried[kind]}" for kind in args.kinds)
            wrong = len({label for label, _ in trial.outcome.wrong})
            print(
                f"{name:30} {len(trial.events):4} events: {counts}; wrong {wrong}  ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    total: Counter[str] = sum((each.tried for each in outcomes.values()), Counter())
    wrong = sum(len({label for label, _ in each.wrong}) for each in outcomes.values())
    print(
        f"all: {', '.join(f'{kind} {total[kind]}' for kind in args.kinds)}; {sum(total.values())} tried, {wrong} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
