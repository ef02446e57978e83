"""What is told of a run's course: a line for each step, a row for each evaluation or epoch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class StepLine:
    """A line of `steps.jsonl`.

    Attributes:
        step: optimizer steps done, this one included.
        epoch: passes over the training images that they come to.
        loss: of the whole batch; None where it was not finite and the step was skipped.
        lr: the rate of this step.
        images_per_sec: since the step before, reading the images included; None where no time went by.
        seconds: of the whole run, earlier parts and evaluations included.
    """

    step: int
    epoch: float
    loss: float | None
    lr: float
    images_per_sec: float | None
    seconds: float


@dataclass(frozen=True)
class Row:
    """A row of `summary.csv`, whose columns are named as those of timm's training script where it has them.

    Attributes:
        train_loss: mean over the steps since the row before.
        eval_top1, eval_agreement, eval_cosine: as in `Scores`; None where nothing was evaluated.
        best_step: the step with the best scores so far; None without any.
    """

    epoch: float
    step: int
    train_loss: float | None
    eval_top1: float | None
    eval_agreement: float | None
    eval_cosine: float | None
    best_step: int | None
    lr: float | None
    images_per_sec: float | None
    seconds: float


COLUMNS = tuple(field.name for field in fields(Row))
