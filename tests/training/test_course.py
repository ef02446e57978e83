"""What a run tells of its course: every step, every epoch and evaluation, once, whatever interrupted it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompact.errors import Interrupted, UsageError
from vitcompact.options.logs import LogOptions
from vitcompact.training import FinetuneResult, TensorBatches, finetune
from vitcompact.training.course import COURSE, STEPS_NAME, SUMMARY_NAME, Course, losses
from vitcompact.training.lines import COLUMNS

from .helpers import SIZE, StopAfter, make_student, make_teacher, options
from .test_schedule import FakeClock, TimedBatches

STEPS, EVERY = 8, 2
ROWS = [0, 2, 3, 4, 6, 8]
"""Where rows are due: before, each second step, each epoch of three, at the end."""


Go = Callable[..., FinetuneResult]


@pytest.fixture(scope="module")
def go() -> Go:
    """A run of eight steps with evaluations on a clock of one second a batch; keeps a state after each step."""
    teacher = make_teacher()
    student = make_student(teacher, branches=0)
    images = torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def run(folder: Path, **more: Any) -> FinetuneResult:
        clock = FakeClock()
        stream = TimedBatches(images, clock, lambda step: 1.0)
        chosen = options(steps=STEPS, eval_every=EVERY, eval_share=1, save_minutes=1e-9)
        evaluation = [(images, torch.arange(24) % 5)]
        more = {"state_dir": folder, "evaluation": evaluation, **more}
        return finetune(student, teacher, stream, options=chosen, clock=clock, **more)

    return run


def stopped(go: Go, folder: Path, **more: Any) -> None:
    """A run that is interrupted after step 5: three evaluations of one batch come before."""
    with pytest.raises(Interrupted, match="after step 5"):
        go(folder, progress=StopAfter(3 + 5 - 1), **more)


@pytest.fixture(scope="module")
def runs(go: Go, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneResult, Path]:
    """A whole run, and the folder that has it and one that was stopped."""
    root = tmp_path_factory.mktemp("course")
    stopped(go, root / "stopped")
    return go(root / "whole"), root


def told(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Lines and rows, as any program reads them."""
    lines = [json.loads(line) for line in (folder / STEPS_NAME).read_text().splitlines()]
    with (folder / SUMMARY_NAME).open(newline="") as file:
        return lines, list(csv.DictReader(file))


def timeless(folder: Path) -> tuple[list[Any], list[Any]]:
    """Lines and rows without what a clock says."""
    lines, rows = told(folder)
    kept = [{name: each[name] for name in ("step", "epoch", "loss", "lr")} for each in lines]
    return kept, [{name: row[name] for name in COLUMNS if name not in ("images_per_sec", "seconds")} for row in rows]


def test_each_step_epoch_and_evaluation_is_told(runs: tuple[FinetuneResult, Path]) -> None:
    result, folder = runs[0], runs[1] / "whole"
    lines, rows = told(folder)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert [line["seconds"] for line in lines] == [*range(2, STEPS + 2)]  # one batch is looked at before
    assert {line["images_per_sec"] for line in lines} == {8.0}
    assert [line["epoch"] for line in lines[:3]] == [0.3333, 0.6667, 1.0]
    assert lines[0]["lr"] == pytest.approx(result.lr)  # one step of warm-up
    assert lines[0]["lr"] > lines[-1]["lr"] > 0
    assert [int(row["step"]) for row in rows] == ROWS
    assert [bool(row["eval_top1"]) for row in rows] == [True, True, False, True, True, True]
    for row, before in zip(rows[1:], rows, strict=False):
        since = [line["loss"] for line in lines if int(before["step"]) < line["step"] <= int(row["step"])]
        assert float(row["train_loss"]) == pytest.approx(sum(since) / len(since), rel=1e-6)
        assert float(row["images_per_sec"]) == pytest.approx(8.0)
    assert float(rows[-1]["eval_top1"]) == result.top1_after
    assert [row["step"] for row in result.history] == ROWS
    assert losses(folder / STEPS_NAME) == [(line["step"], line["loss"]) for line in lines]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a half line": lambda path: _append(path, b'{"step": 7, "epo'),
    "half a row": lambda path: _append(path.with_name(SUMMARY_NAME), b"2.0,6,0.3"),
    "steps that the state does not have": lambda path: _append(path, _line(6) + _line(7)),
    "a row that the state does not have": lambda path: _append(path.with_name(SUMMARY_NAME), b"2.0,6,,,,,,,,6\n"),
    "no text": lambda path: _append(path, b"\xff\x00\xfe\n"),
    "an endless line": lambda path: _append(path, b"[" * 100_000),
}


def _append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def _line(step: int) -> bytes:
    values = {"step": step, "epoch": 1.0, "loss": 9.0, "lr": 1.0, "images_per_sec": 1.0, "seconds": 1.0}
    return json.dumps(values).encode() + b"\n"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resumed_run_tells_every_step_once(
    damage: str, go: Go, runs: tuple[FinetuneResult, Path], tmp_path: Path
) -> None:
    """Also where it was killed in the middle of a line, or long after its last state."""
    whole, root = runs
    here = shutil.copytree(root / "stopped", tmp_path / "here")
    DAMAGE[damage](here / STEPS_NAME)
    resumed = go(here, resume="auto")
    assert timeless(here) == timeless(root / "whole")
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]


@pytest.mark.parametrize("lost", COURSE)
def test_a_course_that_was_lost_begins_where_the_run_goes_on(
    lost: str, go: Go, runs: tuple[FinetuneResult, Path], tmp_path: Path
) -> None:
    here = shutil.copytree(runs[1] / "stopped", tmp_path / "here")
    (here / lost).unlink()
    go(here, resume="auto")
    lines, rows = told(here)
    assert lines[-1]["step"] == int(rows[-1]["step"]) == STEPS


def test_a_run_that_goes_on_elsewhere_takes_its_course_along(
    go: Go, runs: tuple[FinetuneResult, Path], tmp_path: Path
) -> None:
    go(tmp_path / "there", resume=runs[1] / "stopped")
    assert timeless(tmp_path / "there") == timeless(runs[1] / "whole")
    assert len(told(runs[1] / "stopped")[0]) < STEPS


@pytest.mark.parametrize(
    ("name", "content"),
    [(SUMMARY_NAME, b"epoch,train_loss,eval_top1\n0,1.0,2.0\n"), (STEPS_NAME, b"mine\n"), (SUMMARY_NAME, b"epoch")],
)
def test_somebodys_files_are_not_replaced(name: str, content: bytes, go: Go, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} was not written by vitcompact, and would be replaced"):
        go(tmp_path / "here")
    assert (tmp_path / "here" / name).read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_writing_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    course = Course(tmp_path, 3, 8)
    course.begin()
    course.step(1, 0.5, 1e-3, 1.0, 1.0)
    course._files[STEPS_NAME].close()
    course._files[STEPS_NAME] = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    for step in (2, 3):
        course.step(step, 0.5, 1e-3, 1.0, 1.0)
    course.row(3, None, None, 3.0)
    course.close()
    assert caplog.text.count("its course is no longer written: ") == 1
    assert course.rows[0].train_loss == 0.5
    assert len(told(tmp_path)[0]) == 1


class Told:
    """Stands for both programs, and keeps what it is told."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.scalars: list[tuple[str, int]] = []

    def writer(self, folder: str, purge_step: int | None) -> Told:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.opened.append({"run": Path(folder).name, "from": purge_step})
        return self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, step))

    def init(self, project: str | None, id: str | None, resume: str | None, config: dict[str, Any]) -> Told:
        assert config["steps"] == STEPS
        self.id = id or "abc"
        self.opened.append({"run": project, "from": id})
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.scalars += [(f"train/{name}" if "_" not in name else name.replace("_", "/", 1), step) for name in values]

    def flush(self) -> None:
        pass

    close = finish = flush


@pytest.mark.parametrize(
    ("asked", "opened"),
    [
        ({"log_tensorboard": True}, [{"run": "run-1", "from": None}, {"run": "run-1", "from": 6}]),
        (
            {"log_wandb": True, "wandb_project": "small"},
            [{"run": "small", "from": None}, {"run": "small", "from": "abc"}],
        ),
    ],
)
def test_other_programs_are_told(
    asked: dict[str, Any],
    opened: list[Any],
    go: Go,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitcompact.options.logs._installed", lambda package: True)
    kept = Told()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=kept.init))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=kept.writer))
    stopped(go, tmp_path, log=LogOptions(**asked))
    go(tmp_path, log=LogOptions(**asked), resume="auto")
    assert kept.opened == opened
    assert [step for name, step in kept.scalars if name == "train/loss"] == [*range(1, STEPS + 1)]
    assert {step for name, step in kept.scalars if name == "eval/top1"} == {0, 2, 4, 6, STEPS}


def test_event_files_are_those_of_tensorboard(go: Go, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        go(tmp_path, log=LogOptions(log_tensorboard=True))
    found = sorted((tmp_path / "tensorboard").iterdir())
    assert [path.name for path in found] == ["run-1", "run-2"]
    events = EventAccumulator(str(found[1])).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_extra_is_told_at_once(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.options.logs._installed", lambda name: name != package)
    with pytest.raises(UsageError, match=rf"`log_{package}` needs {package}, .*pip install 'vitcompact\[{package}\]'"):
        LogOptions(log_tensorboard=package == "tensorboard", log_wandb=package == "wandb")


def test_tensorboard_needs_a_folder(
    student: nn.Module, teacher: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompact.options.logs._installed", lambda package: True)
    with pytest.raises(UsageError, match="`log_tensorboard` needs `state_dir`"):
        finetune(student, teacher, TensorBatches(images), options=options(), log=LogOptions(log_tensorboard=True))
    with pytest.raises(UsageError, match="`wandb_project` is of `log_wandb`"):
        LogOptions(wandb_project="small")
