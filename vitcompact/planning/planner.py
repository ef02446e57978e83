"""A plan for a global budget, from images: what is measured first, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import ImageBatches
from vitcompact.errors import UsageError
from vitcompact.operators.merge import given_schedule, merge_schedule
from vitcompact.planning.budget_plan import BudgetPlan, plan_budget
from vitcompact.planning.candidates import Losses
from vitcompact.planning.curves import Curves, measured_losses
from vitcompact.planning.latency_target import plan_latency
from vitcompact.planning.merging import Merging, measure_merging
from vitcompact.planning.request import Budget, check_keep
from vitcompact.planning.selection import Selection
from vitcompact.planning.serving import USUAL, Serving
from vitcompact.planning.site_time import time_sites
from vitcompact.utils.device import device_of
from vitcompact.utils.progress import Progress, silent

logger = logging.getLogger("vitcompact")


def plan_for(
    original: nn.Module,
    images: ImageBatches,
    budget: Budget,
    *,
    selection: Selection | None = None,
    weigh: bool = True,
    known: OutputSensitivity | None = None,
    cache_bytes: float = 4e9,
    curves: Curves | None = None,
    progress: Progress = silent,
) -> BudgetPlan:
    """Measure and spend: the plan for a budget, from unlabelled images.

    Args:
        known: of `original`, which tokens that merge are compared by; None measures it where it is needed.
        curves: what was measured before, where it holds; what is measured goes there.

    Raises:
        UsageError: the target is out of reach, merging is to be weighed against errors that are not, or `keep` of a
            model with a head.
        DataError: images that give non-finite activations.
    """
    if budget.merge_tokens == "auto" and not weigh:
        raise UsageError("`merge_tokens='auto'` compares expected loss increases: leave out `without='sensitivity'`")
    check_keep(budget.keep, images, original)
    if weigh and known is None:
        known = OutputSensitivity(original, images, budget.keep, progress)
    offered = offered_merging(original, images, budget, known=known, progress=progress)
    losses = measured_losses(
        *(original, images, curves),
        ops=budget.ops,
        budget=None if offered else budget,
        selection=selection,
        keep=budget.keep,
        weigh=weigh,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    if budget.unit == "latency" and curves is not None:
        asked = (budget.serving, device_of(original))
        times = curves.times(asked, lambda: time_sites(original, losses.choices(), budget.serving, progress))
        losses = replace(losses, times=times)
    return plan_measured(original, losses, budget, offered, progress=progress)


def plan_measured(
    original: nn.Module,
    losses: Losses,
    budget: Budget,
    offered: Sequence[Merging] = (),
    *,
    progress: Progress = silent,
) -> BudgetPlan:
    """The plan for a budget from losses measured before; for latency, layers are timed where they are not yet.

    Args:
        offered: what `offered_merging` gives.

    Raises:
        UsageError: the target is out of reach.
    """
    if budget.unit != "latency":
        return plan_budget(original, losses, budget, offered)
    losses = timed(original, losses, budget.serving, progress)
    return plan_latency(original, losses, budget, budget.serving.reader(original), offered, progress)


def offered_merging(
    original: nn.Module,
    images: ImageBatches,
    budget: Budget,
    *,
    known: OutputSensitivity | None = None,
    progress: Progress = silent,
) -> tuple[Merging, ...]:
    """The schedules of merging tokens that a budget may or must use, with what they save and lose.

    Args:
        known: as in `measure_merging`.

    Raises:
        UsageError: numbers were given, and tokens of this model cannot be merged.
    """
    if budget.merge_tokens is None:
        return ()
    schedule = given_schedule(original, budget.merge_tokens)
    if budget.merge_tokens == "auto":
        try:
            merge_schedule(original, 1)
        except UsageError as error:
            logger.warning("%s; the budget is left to the operators", error)
            return ()
        if budget.unit == "params":
            logger.warning("merging tokens saves no parameters; the budget is left to the operators")
            return ()
    elif not schedule:
        return ()
    return measure_merging(original, images, budget, schedule or None, known=known, progress=progress)


def timed(
    original: nn.Module,
    losses: Losses,
    serving: Serving = USUAL,
    progress: Progress = silent,
) -> Losses:
    """`losses` with the times of all layers on the device of `original`; as they are where they have them.

    Runtimes other than PyTorch run on the CPU.
    """
    if losses.times is not None and losses.times.serving == serving:
        return losses
    return replace(losses, times=time_sites(original, losses.choices(), serving, progress))
