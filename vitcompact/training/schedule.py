"""How many steps a run has, how far along it is, and the learning rate that follows from that.

A run with a time limit does not know its number of steps: the first steps are timed, the number is planned and
recorded, and revised at a few fixed points. timm's scheduler is driven by a position that moves towards the end
of its span in the planned number of steps, so the learning rate is down when the run ends, whatever the revisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from vitcompact.training.options import ResolvedOptions, TrainOptions

MEASURED_STEPS = 6
"""Steps after which a run with a time limit is planned; the first of them, slower than the rest, does not count."""

REVISIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the schedule after which the plan of a run with a time limit is compared with the clock again."""

_UNPLANNED = 10**9


@dataclass
class StepPlan:
    """The state of the schedule, as it is saved.

    Attributes:
        total: planned number of steps; None while that is not known.
        limit: number of steps that may not be exceeded (`steps`, `epochs`); None for a time limit alone.
        step: steps done.
        span: length of the schedule in its own units (the number of steps planned first).
        position: where the schedule stands, in [0, span].
        revisions: how many of `REVISIONS` are behind.
    """

    total: int | None
    limit: int | None
    step: int = 0
    span: int = _UNPLANNED
    position: float = 0.0
    revisions: int = 0

    @classmethod
    def of(cls, options: TrainOptions, steps_per_epoch: int) -> StepPlan:
        """A new plan; complete where the options give a number of steps and no time limit."""
        limits = [] if options.steps is None else [options.steps]
        if options.epochs is not None:
            limits.append(max(1, round(options.epochs * steps_per_epoch)))
        limit = min(limits) if limits else None
        if limit is None or options.max_minutes is not None:
            return cls(total=None, limit=limit)
        return cls(total=limit, limit=limit, span=limit)

    def check(self) -> None:
        """Raises ValueError for numbers that no run comes to."""
        ends = [end for end in (self.total, self.limit) if end is not None]
        sound = 0 <= self.step <= min(ends, default=_UNPLANNED) and 1 <= self.span <= _UNPLANNED
        if not (sound and 0 <= self.position <= self.span and 0 <= self.revisions <= len(REVISIONS)):
            raise ValueError(f"{self} cannot be")

    def continues(self, begun: StepPlan) -> bool:
        """Whether a run that began as `begun` can have come here: only a time limit changes what was planned."""
        planned = begun.total is None or (self.total, self.span) == (begun.total, begun.span)
        return planned and self.limit == begun.limit

    @property
    def finished(self) -> bool:
        return self.total is not None and self.step >= self.total

    def advance(self) -> None:
        """One step is done."""
        if self.total is None:
            self.position += 1
        else:
            self.position += (self.span - self.position) / (self.total - self.step)
        self.step += 1

    def revise(self, remaining: float) -> None:
        """The clock leaves room for `remaining` more steps."""
        total = self.step + max(1, math.floor(remaining))
        total = total if self.limit is None else min(total, self.limit)
        if self.total is None:
            self.span = total
        self.total = total

    @property
    def revision_due(self) -> bool:
        """Whether the plan of a run with a time limit should be compared with the clock now."""
        if self.total is None:
            return self.step >= MEASURED_STEPS
        return self.revisions < len(REVISIONS) and self.position >= REVISIONS[self.revisions] * self.span

    def note_revision(self) -> None:
        """Count the points of `REVISIONS` that are behind."""
        self.revisions = sum(self.total is not None and self.position >= share * self.span for share in REVISIONS)

    def follow(self, values: Mapping[str, Any]) -> None:
        """Become what another process has planned."""
        for name, value in values.items():
            setattr(self, name, value)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class LearningRate:
    """timm's scheduler for a `StepPlan`, rebuilt when the plan's span becomes known."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: ResolvedOptions) -> None:
        self._optimizer, self._options = optimizer, options
        self._span = 0
        self._scheduler: Any = None

    def apply(self, plan: StepPlan) -> None:
        """Set the learning rates of the step that comes next."""
        if plan.span != self._span:
            self._span, self._scheduler = plan.span, self._make(plan.span)
        self._scheduler.step_update(plan.position)

    @property
    def value(self) -> float:
        """The rate as last set, for weights of the usual size."""
        group = self._optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))

    def _make(self, span: int) -> Any:
        options = self._options
        warmup = min(options.warmup_steps, span // 5)
        scheduler, _ = create_scheduler_v2(
            self._optimizer,
            sched=options.sched,
            num_epochs=max(span, 2),  # timm's cosine refuses to move within one step
            updates_per_epoch=1,
            step_on_epochs=False,
            warmup_epochs=warmup,
            warmup_lr=options.lr / max(warmup, 1),
            min_lr=0.0,
            decay_rate=1.0,  # the power of `poly`
        )
        return scheduler
