"""What a finetuning run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.utils.text import fields, pairs_html


class DivergedError(UsageError):
    """The loss was not finite for several steps in a row (exit code 2)."""


StoppedBy = Literal["epochs", "steps", "max_minutes"]


@dataclass(frozen=True)
class FinetuneResult:
    """The trained model and what was measured; None marks what could not be.

    Attributes:
        model: a new module in training form and evaluation mode, on the device of the model it was made from.
        steps: optimisation steps done.
        epochs: passes over the training images that they come to.
        top1_before: percent right on the evaluation images before training.
        top1_after: the same for `model`.
        agreement: fraction of evaluation images on which `model` and the original have the same first guess.
        cosine: for a model without a head, mean cosine of both models' pooled features on the evaluation images.
        seconds: time spent, evaluation and earlier parts of a resumed run included.
        images_seen: training images, counted each time they were seen.
        branch_ratio: per branched layer, norm of the folded branches over that of the solved matrix.
        stopped_by: the limit that ended the run.
        best_step: the step whose weights `model` has, where those are not the last: an evaluation during training was
            better, or (0) training led away from the original.
        skipped_steps: steps without effect, since their loss was not finite.
        lr: the learning rate at its height.
        history: a mapping for each epoch and evaluation, with the columns of `summary.csv` (`training.lines.Row`).
    """

    model: nn.Module
    steps: int
    epochs: float
    top1_before: float | None
    top1_after: float | None
    agreement: float | None
    cosine: float | None
    seconds: float
    images_seen: int
    branch_ratio: dict[str, float]
    stopped_by: StoppedBy
    best_step: int | None = None
    skipped_steps: int = 0
    lr: float | None = None
    history: tuple[Mapping[str, float | None], ...] = ()

    def _shown(self) -> dict[str, Any]:
        values = {name: value for name, value in self.to_json().items() if name not in ("top1", "branch_ratio")}
        scores = {"top1_before": self.top1_before, "top1_after": self.top1_after}
        return {"model": type(self.model).__name__, **values, **scores}

    def __repr__(self) -> str:
        return fields("FinetuneResult", **self._shown())

    def _repr_html_(self) -> str:
        return pairs_html("FinetuneResult", self._shown())

    @property
    def top1(self) -> dict[str, float | None]:
        """Percent right before and after."""
        return {"before": self.top1_before, "after": self.top1_after}

    def to_json(self) -> dict[str, Any]:
        """The keys of `finetune --json`, without `out`."""
        measured = ("steps", "epochs", "top1", "agreement", "cosine", "seconds", "images_seen", "branch_ratio")
        names = (*measured, "stopped_by", "best_step", "skipped_steps", "lr")
        return {name: getattr(self, name) for name in names}
