"""The course of a run: a line for each step, a row for each evaluation or epoch. A resumed run goes on with them."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vitcompact.errors import UsageError
from vitcompact.training.held_out import Scores
from vitcompact.training.lines import COLUMNS, Row, StepLine
from vitcompact.training.trackers import Tracker
from vitcompact.utils.files import replace_file
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.reading import check_regular
from vitcompact.utils.typed import typed

STEPS_NAME, SUMMARY_NAME = "steps.jsonl", "summary.csv"
COURSE = (STEPS_NAME, SUMMARY_NAME)
"""Files of a run's course, in the folder of its state while it runs."""
_LONGEST = 4096  # bytes of a line that is ours
_STARTS = {STEPS_NAME: b'{"step": ', SUMMARY_NAME: ",".join(COLUMNS).encode()}

logger = logging.getLogger("vitcompact")


class Course:
    """Writes and reads on what happened so far.

    A line reaches the system in one piece, so that a kill leaves whole lines. What the disk refuses ends the writing,
    not the run.

    Args:
        folder: of the files; None keeps the rows in memory alone. Of several processes the first has one.
        steps_per_epoch, batch_size: of the whole run.

    Attributes:
        trackers: told of every line and row.
        rows: so far.
    """

    def __init__(self, folder: Path | None, steps_per_epoch: int, batch_size: int) -> None:
        self._folder, self._steps_per_epoch, self._batch_size = folder, steps_per_epoch, batch_size
        self.trackers: list[Tracker] = []
        self.rows: list[Row] = []
        self._files: dict[str, IO[str]] = {}
        self._sums = _Sums()
        self._last: StepLine | None = None

    def begin(self, step: int = 0, beside: Path | None = None, processes: Processes = ALONE) -> None:
        """Open the files; those of a run that goes on after `step`, lying in the folder `beside`, are continued.

        Of what that run wrote after the state from which it goes on, nothing stays.
        """
        sums, rows = processes.agreed(lambda: self._continued(step, beside))
        self._sums, self.rows = _Sums(**sums), [Row(**row) for row in rows]
        if self._folder is None:
            return
        with self._unless_refused():
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in COURSE:
                mode = "a" if step else "w"
                file = open(self._folder / name, mode, buffering=1, encoding="utf-8", newline="")  # noqa: SIM115
                self._files[name] = file
            if self._files[SUMMARY_NAME].tell() == 0:
                self._write(SUMMARY_NAME, _joined(COLUMNS))

    def step(self, step: int, loss: float | None, lr: float, took: float, seconds: float) -> None:
        """A step is done, which took so many seconds."""
        speed = float(f"{self._batch_size / took:.4g}") if took > 0 else None
        self._last = line = StepLine(step, round(step / self._steps_per_epoch, 4), loss, lr, speed, round(seconds, 3))
        self._sums.add(line, self._batch_size)
        self._write(STEPS_NAME, json.dumps(asdict(line)) + "\n")
        for tracker in self.trackers:
            tracker.step(line)

    def row(self, step: int, scores: Scores | None, best_step: int | None, seconds: float) -> None:
        """An epoch has ended, or something was evaluated after `step`."""
        found = scores or Scores()
        row = Row(
            epoch=round(step / self._steps_per_epoch, 4),
            step=step,
            train_loss=self._sums.loss,
            eval_top1=found.top1,
            eval_agreement=found.agreement,
            eval_cosine=found.cosine,
            best_step=best_step,
            lr=self._last.lr if self._last else None,
            images_per_sec=self._sums.images_per_sec,
            seconds=round(seconds, 3),
        )
        self._sums = _Sums()
        self.rows.append(row)
        self._write(SUMMARY_NAME, _joined(asdict(row).values()))
        for tracker in self.trackers:
            tracker.row(row)

    @property
    def history(self) -> tuple[dict[str, float | None], ...]:
        """The rows as mappings."""
        return tuple(asdict(row) for row in self.rows)

    def sync(self) -> None:
        """Let what was written reach the disk, ahead of a state that goes on from there."""
        with self._unless_refused():
            for file in self._files.values():
                os.fsync(file.fileno())

    def close(self) -> None:
        """Nothing more is written."""
        for tracker in self.trackers:
            tracker.close()
        _close(self._files)

    def _write(self, name: str, text: str) -> None:
        if name in self._files:
            with self._unless_refused():
                self._files[name].write(text)

    def _unless_refused(self) -> _Refusals:
        return _Refusals(self._files)

    def _continued(self, step: int, beside: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Sums since the last row and the rows, after the files were cut to what belongs to the first `step` steps."""
        if not step or beside is None or self._folder is None:
            return asdict(_Sums()), []
        rows, sums = [*_rows(beside / SUMMARY_NAME, step)], _Sums()
        since = rows[-1].step if rows else 0

        def steps(path: Path) -> None:
            with path.open("wb") as file:
                for content, line in _lines(beside / STEPS_NAME, step):
                    file.write(content)
                    if line.step > since:
                        sums.add(line, self._batch_size)
                    self._last = line

        def summary(path: Path) -> None:
            path.write_text("".join(map(_joined, [COLUMNS, *(asdict(row).values() for row in rows)])), newline="")

        with self._unless_refused():
            replace_file(self._folder / STEPS_NAME, steps)
            replace_file(self._folder / SUMMARY_NAME, summary)
        return asdict(sums), [asdict(row) for row in rows]


class _Refusals(suppress):
    """Passes over what the disk refuses, says it once, and closes the files, which would miss what was refused."""

    def __init__(self, files: dict[str, IO[str]]) -> None:
        super().__init__(OSError, UsageError)
        self._files = files

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        passed = bool(super().__exit__(kind, error, trace))
        if error is not None and passed:
            logger.warning("training goes on, but its course is no longer written: %s", error)
            _close(self._files)
        return passed


def _close(files: dict[str, IO[str]]) -> None:
    while files:
        with suppress(OSError):
            files.popitem()[1].close()


@dataclass
class _Sums:
    """Over the steps since the last row."""

    steps: int = 0
    losses: float = 0.0
    images: int = 0
    took: float = 0.0

    def add(self, line: StepLine, images: int) -> None:
        if line.loss is not None:
            self.steps, self.losses = self.steps + 1, self.losses + line.loss
        if line.images_per_sec:
            self.images, self.took = self.images + images, self.took + images / line.images_per_sec

    @property
    def loss(self) -> float | None:
        return self.losses / self.steps if self.steps else None

    @property
    def images_per_sec(self) -> float | None:
        return float(f"{self.images / self.took:.4g}") if self.took else None


def is_course(path: Path) -> bool:
    """Whether a file of this name is one that `Course` wrote, by how it begins; an empty one is."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_STARTS[path.name]))
    except (OSError, ValueError):
        return False
    return start == _STARTS[path.name][: len(start)] and (not start or start == _STARTS[path.name])


def losses(path: Path) -> list[tuple[int, float | None]]:
    """Step and loss of each line of a `steps.jsonl`, as far as it can be read."""
    return [(line.step, line.loss) for _, line in _lines(path, None)]


def _lines(path: Path, last: int | None) -> Iterator[tuple[bytes, StepLine]]:
    """The lines of the steps up to `last`, each with its bytes; damage ends them."""
    before = 0
    with suppress(OSError, ValueError, RecursionError):
        check_regular(path)
        with path.open("rb") as file:
            while (content := file.readline(_LONGEST)).endswith(b"\n"):
                line = typed(StepLine, json.loads(content), "the line")
                if line.step <= before or (last is not None and line.step > last):
                    return
                before = line.step
                yield content, line


def _rows(path: Path, step: int) -> Iterator[Row]:
    """The rows before `step`: what was evaluated after it is evaluated again."""
    before = -1
    with suppress(OSError, ValueError, csv.Error):
        check_regular(path)
        with path.open(encoding="utf-8", newline="") as file:
            for found in csv.DictReader(iter(lambda: _whole(file.readline(_LONGEST)), "")):
                row = typed(Row, {name: _number(value) for name, value in found.items()}, "the row")
                if not before < row.step < step:
                    return
                before = row.step
                yield row


def _whole(line: str) -> str:
    return line if line.endswith("\n") else ""


def _number(text: str | None) -> float | int | None:
    return None if not text else int(text) if text.isdecimal() else float(text)


def _joined(values: Iterable[object]) -> str:
    """A line of a table; None is an empty cell."""
    held = io.StringIO()
    csv.writer(held, lineterminator="\n").writerow(values)
    return held.getvalue()
