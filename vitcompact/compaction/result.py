"""What the whole job found: both models measured alike, what was asked for, and what was done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vitcompact.analysis import AnalysisReport
from vitcompact.options.shared import Backend
from vitcompact.planning.serving import USUAL, Serving
from vitcompact.plans.schema import Plan
from vitcompact.reporting import write_page
from vitcompact.reporting.measures import measured_of
from vitcompact.reporting.notebook import fragment
from vitcompact.utils.intervals import Interval
from vitcompact.utils.text import fields


@dataclass(frozen=True)
class Measures:
    """One of the two models.

    Attributes:
        top1: percent right on the evaluation images; None without labels.
        agreement: share of images with the original's first guess, 1 for itself; None without a head.
        cosine: mean cosine of the outputs with the original's.
        latency_ms: median milliseconds of a batch.
        macs: multiply-accumulates an image.
        params: parameters.
    """

    top1: float | None
    agreement: float | None
    cosine: float | None
    latency_ms: float
    macs: int
    params: int


@dataclass(frozen=True)
class Step:
    """One step of the job: how long it took, and what was lost after it (`drop`, in points)."""

    name: str
    seconds: float
    drop: float | None = None
    note: str = ""


@dataclass(frozen=True)
class CompactResult:
    """The folded model, and what is known of it.

    Attributes:
        model: a new module, folded, in evaluation mode.
        before, after: the original and the folded model.
        batch_size: of the latencies.
        speedup: median over pairs of runs of the original's time over the model's, and its 95 % interval.
        drop: what was lost in points (top-1; without labels images answered otherwise; without a head, cosine), and its
            95 % interval where it is known.
        judged: images that both were compared on, none of which chose what was kept.
        asked: targets by name.
        missed: the targets that were given up, each with what was reached.
        steps: what was done, in order.
        plan: what was done to which layer.
        budget: the budget of the plan in JSON, for pages.
        analysis: likeness of heads, spectra, attention maps and merged tokens, for pages.
        changed: the images whose answers changed most, for pages.
        serving: how both models were timed.
    """

    model: nn.Module
    before: Measures
    after: Measures
    speedup: float
    speedup_interval: Interval
    drop: float
    drop_interval: Interval | None
    judged: int
    asked: dict[str, float]
    missed: dict[str, str]
    steps: tuple[Step, ...]
    plan: Plan
    budget: dict[str, Any] = field(default_factory=dict, repr=False)
    analysis: AnalysisReport | None = field(default=None, repr=False)
    changed: dict[str, Any] = field(default_factory=dict, repr=False)
    serving: Serving = USUAL

    @property
    def batch_size(self) -> int:
        """Images per batch of those times."""
        return self.serving.batch_size

    @property
    def backend(self) -> Backend:
        """What ran both models then."""
        return self.serving.backend

    @property
    def reached(self) -> dict[str, Any]:
        """Every measure of size and loss as a target would name it, with intervals, and what was given up."""
        return {
            "speedup": self.speedup,
            "speedup_interval": list(self.speedup_interval),
            "macs": self.after.macs / self.before.macs,
            "params": self.after.params / self.before.params,
            "drop": self.drop,
            "drop_interval": None if self.drop_interval is None else list(self.drop_interval),
            "asked": self.asked,
            "gave_up": dict(self.missed),
        }

    def __repr__(self) -> str:
        shown = {"speedup": self.speedup, "drop": self.drop, "macs": self.after.macs / self.before.macs}
        missed = ", ".join(self.missed) or None
        return fields("CompactResult", model=type(self.model).__name__, **shown, gave_up=missed)

    def to_json(self) -> dict[str, Any]:
        """The keys of `compact --json`, without bytes, report and out."""
        return {
            "before": asdict(self.before),
            "after": asdict(self.after),
            **asdict(self.serving),
            "num_samples": self.judged,
            "reached": self.reached,
            "steps": [asdict(step) for step in self.steps],
            "plan": self.plan.to_json(),
        }

    def measured(self) -> dict[str, Any]:
        """Both models and the intervals, as pages and tables take them."""
        lost = None if self.drop_interval is None else [-self.drop_interval[1], -self.drop_interval[0]]
        labelled = self.after.top1 is not None
        shares = None if labelled or lost is None or self.after.agreement is None else [1 + end / 100 for end in lost]
        return measured_of(
            (asdict(self.before), asdict(self.after)),
            speedup=self.speedup,
            speedup_interval=list(self.speedup_interval),
            top1_interval=lost if labelled else None,
            agreement_interval=shares,
            **asdict(self.serving),
            num_samples=self.judged,
        )

    def to_page(self) -> dict[str, Any]:
        """What `reporting.draw` makes a page of."""
        inside = {} if self.analysis is None else self.analysis.to_page()
        done = {
            "measured": self.measured(),
            "gave_up": self.missed,
            "steps": [asdict(step) for step in self.steps],
            "plan": self.plan.to_json(),
            "skipped": self.plan.to_json()["skipped"],
            "budget": self.budget,
            "changed": self.changed,
        }
        return {"model": type(self.model).__name__, **inside, **done, "lead": self._lead()}

    def _lead(self) -> str:
        kind = "evaluation images" if self.after.top1 is not None else "images"
        return f"Folded, and compared with the original on {self.judged} {kind}."

    def save(self, path: str | Path) -> Path:
        """Draw what was found into a .html file that loads nothing; a page of ours that is there is replaced.

        Raises:
            UsageError: no .html file, or one that cannot be written.
        """
        return write_page(self.to_page(), path)

    def _repr_html_(self) -> str:
        return fragment(repr(self), self.to_page())
