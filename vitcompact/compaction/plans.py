"""Plans for any target from one measurement of the layers, with token merging weighed by itself where it can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import ImageBatches
from vitcompact.errors import UsageError
from vitcompact.operators.merge import merge_schedule
from vitcompact.planning.budget_plan import BudgetPlan
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.planner import offered_merging, plan_measured, timed
from vitcompact.planning.request import Budget, MergeTokens, Unit
from vitcompact.planning.selection import Selection, patterns
from vitcompact.planning.serving import Serving
from vitcompact.utils.progress import Progress


@dataclass
class Planner:
    """Measures the layers when the first plan is asked for, and not again.

    Attributes:
        original: frozen, on the device to work on.
        merge_tokens: None weighs merging against the operators where tokens of this model can be merged; 0 is none.
        serving: how everything that is timed is run.
    """

    original: nn.Module
    images: ImageBatches
    protect: Iterable[str]
    size_multiple: int
    merge_tokens: MergeTokens | None
    serving: Serving
    progress: Progress
    losses: Losses | None = field(default=None)

    def __post_init__(self) -> None:
        self._known = OutputSensitivity(self.original, self.images, progress=self.progress)

    def plan(self, unit: Unit, target: float) -> BudgetPlan:
        """The plan of least expected loss increase.

        Raises:
            UsageError: the target is out of reach.
        """
        budget = Budget(unit, target, merge_tokens=self._merging(unit), serving=self.serving)
        offered = offered_merging(self.original, self.images, budget, known=self._known, progress=self.progress)
        if self.losses is None:
            selection = Selection(protect=patterns(self.protect), size_multiple=self.size_multiple)
            self.losses = measure_losses(
                self.original,
                self.images,
                budget=None if offered else budget,
                selection=selection,
                progress=self.progress,
            )
        if unit == "latency":
            self.losses = timed(self.original, self.losses, self.serving, self.progress)
        return plan_measured(self.original, self.losses, budget, offered, progress=self.progress)

    def _merging(self, unit: Unit) -> MergeTokens | None:
        if self.merge_tokens is not None:
            return self.merge_tokens
        try:
            merge_schedule(self.original, 1)
        except UsageError:
            return None
        return None if unit == "params" else "auto"
