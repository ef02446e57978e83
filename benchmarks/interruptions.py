"""Whether anything is lost or left behind when a command that writes is ended, refused by the disk, or run twice.

    python benchmarks/interruptions.py
    python benchmarks/interruptions.py --cases convert fold --kinds kill --every 3

Every change that a command makes on the disk is an event (audit hooks). Each kind of interruption happens at each event
in turn, in a process forked from one that has loaded everything:

- `kill`: SIGKILL before the change; `tear`: in the middle of it, with an empty or half-written file.
- `ENOSPC`, `EIO`, `EACCES`, `EXDEV`: the change is refused.
- `SIGINT`, `SIGTERM`: the signal arrives before the change; `lines`: SIGINT before each line of the code that writes
  and locks.
- `two`: a second run of the same command, or another one in the same workspace, while the first stands still before
  the change.

After it, everything has to be as before or as it was to become, and whole. A command that was not killed has left
nothing unfinished and said one thing in at most three lines, with exit code 2 or 130 (but for a file whose removal was
refused, and for files that it says the next command moves). After the next run, all is as if nothing had happened. The
table has one line a command; what was wrong is printed as it is found, and the exit code is 1 where anything was.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from interruptions_cases import CASES, furnish, run
from interruptions_events import can_tear
from interruptions_memory import Memory
from interruptions_trial import FAULTS, SIGNALS, Outcome, Trial

KINDS = ("kill", "tear", *FAULTS, *SIGNALS, "lines", "two")


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
