"""Programs that show how training goes, told of every step: TensorBoard and Weights & Biases, each an extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from vitcompact.checkpoint.quiet import first_line
from vitcompact.errors import UsageError
from vitcompact.options.logs import LogOptions
from vitcompact.training.lines import Row, StepLine

TENSORBOARD = "tensorboard"
"""Folder of event files beside the state, with one folder a run."""


class Tracker(Protocol):
    """What `Course` tells of lines and rows."""

    def step(self, line: StepLine) -> None:
        """A step is done."""

    def row(self, row: Row) -> None:
        """An epoch has ended, or something was evaluated."""

    def close(self) -> None:
        """The run has ended, or this part of it."""


class TensorBoard:
    """Scalars in TensorBoard's event files.

    Args:
        folder: of the run's files; one that goes on has the last of them.
        after: step after which the run goes on; what it wrote beyond is no longer shown. 0 begins a new one.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        runs = [int(path.name.removeprefix("run-")) for path in folder.glob("run-*") if path.name[4:].isdecimal()]
        number = max(runs, default=0) + (0 if after and runs else 1)
        writer: Any = SummaryWriter
        self._writer = writer(str(folder / f"run-{number}"), purge_step=after + 1 if after else None)

    def step(self, line: StepLine) -> None:
        self._tell(
            line.step, {"train/loss": line.loss, "train/lr": line.lr, "train/images_per_sec": line.images_per_sec}
        )

    def row(self, row: Row) -> None:
        names = {"eval/top1": row.eval_top1, "eval/agreement": row.eval_agreement, "eval/cosine": row.eval_cosine}
        self._tell(row.step, names)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _tell(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)


class Wandb:
    """A run of Weights & Biases.

    Args:
        known: id of the run that goes on; None begins one.

    Attributes:
        id: of the run.

    Raises:
        UsageError: it takes no runs here.
    """

    def __init__(self, project: str | None, known: str | None, config: Mapping[str, Any]) -> None:
        import wandb

        try:
            self._run: Any = wandb.init(
                project=project, id=known, resume="allow" if known else None, config=dict(config)
            )
        except Exception as error:
            raise UsageError(f"`log_wandb`: Weights & Biases refuses: {first_line(error)}") from error
        self.id = str(self._run.id)

    def step(self, line: StepLine) -> None:
        self._run.log({name: value for name, value in asdict(line).items() if name != "step"}, step=line.step)

    def row(self, row: Row) -> None:
        scores = {name: value for name, value in asdict(row).items() if name.startswith("eval_") and value is not None}
        if scores:
            self._run.log(scores, step=row.step)

    def close(self) -> None:
        self._run.finish()


def trackers_for(
    options: LogOptions, folder: Path | None, after: int, notes: dict[str, Any], config: Mapping[str, Any]
) -> list[Tracker]:
    """What `options` ask for.

    Args:
        folder: of the state.
        after: step after which a run goes on; 0 begins one.
        notes: saved with the state; the id of a run that can be continued is kept there.
        config: options of the run, to be shown with it.

    Raises:
        UsageError: there is no folder, or one of them refuses.
    """
    found: list[Tracker] = []
    if options.log_tensorboard:
        if folder is None:
            raise UsageError("`log_tensorboard` needs `state_dir`, the folder that its files are written to")
        found.append(TensorBoard(folder / TENSORBOARD, after))
    if options.log_wandb:
        run = Wandb(options.wandb_project, notes.get("wandb") if after else None, config)
        notes["wandb"] = run.id
        found.append(run)
    return found
