"""A plan for a global budget: who pays, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from vitcompact.analysis.cost import Cost, count, meta_copy
from vitcompact.analysis.harms import Harms, measure_harms
from vitcompact.analysis.latency import random_images, relative_latency
from vitcompact.analysis.site_time import time_sites
from vitcompact.data import ImageBatches, resolve_input
from vitcompact.operators.replay import replay
from vitcompact.plan.budget import Curve, Option, spend
from vitcompact.plan.request import Budget
from vitcompact.plan.schema import LayerPlan, Plan, Skipped
from vitcompact.plan.selection import Selection
from vitcompact.progress import Progress, silent

ATTEMPTS = 6
"""How often a plan is tightened where the exact cost of its structure misses the target by a little."""


@dataclass(frozen=True)
class BudgetPlan:
    """A plan for a budget with what is expected of it.

    Attributes:
        before, after: cost of the original and of the folded result.
        curve: the least harm at every saving.
        chosen: the option taken from each of the curve's menus.
        whole: the original's cost in the budget's unit; of latency, 1.
    """

    budget: Budget
    plan: Plan
    before: Cost
    after: Cost
    curve: Curve
    chosen: tuple[Option, ...]
    whole: float


def plan_budget(
    original: nn.Module, harms: Harms, budget: Budget, seconds: Callable[[nn.Module], float] | None = None
) -> BudgetPlan:
    """The plan of least expected harm whose cost is at most `budget.target` times the original's.

    Args:
        seconds: measures a model's latency relative to the original's; needed for a budget of latency, as are the times
            in `harms`.

    Raises:
        UsageError: the target is out of reach.
    """
    size = resolve_input(original).input_size
    before = count(original, size)
    curve = spend(harms.menus(budget.unit))
    whole = 1.0 if budget.unit == "latency" else float(getattr(before, budget.unit))
    saving = whole * (1 - budget.target)
    for _ in range(ATTEMPTS):
        chosen = curve.choose(saving)
        if chosen is None:
            break
        plan = _plan(curve, chosen, harms.skipped)
        small = replay(meta_copy(original), plan.folded())
        after = count(small, size)
        share = seconds(small) if seconds is not None else getattr(after, budget.unit) / whole
        if share <= budget.target:
            return BudgetPlan(budget, plan, before, after, curve, tuple(chosen), whole)
        saving += (share - budget.target) * whole
    raise budget.out_of_reach(1 - curve.reachable / whole)


def plan_for(
    original: nn.Module,
    images: ImageBatches,
    budget: Budget,
    *,
    selection: Selection | None = None,
    weigh: bool = True,
    cache_bytes: float = 4e9,
    latency_batch: int = 8,
    progress: Progress = silent,
) -> BudgetPlan:
    """Measure and spend: the plan for a budget, from unlabelled images.

    Args:
        latency_batch: images per forward pass for a budget of latency, on the device of `original`.

    Raises:
        UsageError: the target is out of reach.
        DataError: images that give non-finite activations.
    """
    harms = measure_harms(
        original,
        images,
        ops=budget.ops,
        budget=budget,
        selection=selection,
        weigh=weigh,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    return plan_measured(original, harms, budget, latency_batch=latency_batch, progress=progress)


def plan_measured(
    original: nn.Module, harms: Harms, budget: Budget, *, latency_batch: int = 8, progress: Progress = silent
) -> BudgetPlan:
    """The plan for a budget from harms that were measured before; for latency, layers are timed where they are not yet.

    Raises:
        UsageError: the target is out of reach.
    """
    if budget.unit != "latency":
        return plan_budget(original, harms, budget)
    harms = timed(original, harms, latency_batch, progress)
    size = resolve_input(original).input_size
    return plan_budget(original, harms, budget, relative_latency(original, size, latency_batch, _device(original)))


def timed(original: nn.Module, harms: Harms, latency_batch: int = 8, progress: Progress = silent) -> Harms:
    """`harms` with the times of all layers on the device of `original`; as they are where they have them."""
    if harms.times is not None:
        return harms
    examples = random_images(resolve_input(original).input_size, latency_batch, _device(original))
    return replace(harms, times=time_sites(original, harms.choices(), examples, progress=progress))


def _plan(curve: Curve, chosen: list[Option], skipped: tuple[Skipped, ...]) -> Plan:
    pairs = zip(curve.menus, chosen, strict=True)
    layers = tuple(LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    return Plan(layers, skipped)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
