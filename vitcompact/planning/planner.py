"""A plan for a global budget: who pays, and what is expected of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from vitcompact.data import ImageBatches, resolve_input
from vitcompact.errors import UsageError
from vitcompact.models.cost import Cost, count, meta_copy
from vitcompact.models.latency import random_images, relative_latency
from vitcompact.operators.merge import given_schedule, merge_schedule
from vitcompact.operators.replay import replay
from vitcompact.plan.schema import LayerPlan, Plan, Skipped
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.knapsack import Curve, Menu, Option, spend
from vitcompact.planning.merging import Merging, measure_merging
from vitcompact.planning.request import Budget
from vitcompact.planning.selection import Selection
from vitcompact.planning.site_time import time_sites
from vitcompact.utils.device import device_of
from vitcompact.utils.progress import Progress, silent

logger = logging.getLogger("vitcompact")

ATTEMPTS = 6
"""How often a plan is tightened where the exact cost of its structure misses the target by a little."""


@dataclass(frozen=True)
class BudgetPlan:
    """A plan for a budget with what is expected of it.

    Attributes:
        before, after: cost of the original and of the folded result.
        curve: the least loss increase at every saving.
        chosen: the option taken from each of the curve's menus.
        whole: the original's cost in the budget's unit; of latency, 1.
        merging: what of the saving comes from merging tokens, or None.
        offered: the schedules of merging that it was chosen from.
    """

    budget: Budget
    plan: Plan
    before: Cost
    after: Cost
    curve: Curve
    chosen: tuple[Option, ...]
    whole: float
    merging: Merging | None = None
    offered: tuple[Merging, ...] = ()

    @property
    def loss(self) -> float:
        """Expected squared change of the model's output per image."""
        return sum(option.loss for option in self.chosen) + (self.merging.loss if self.merging else 0.0)


def plan_budget(
    original: nn.Module,
    losses: Losses,
    budget: Budget,
    seconds: Callable[[nn.Module], float] | None = None,
    offered: Sequence[Merging] = (),
) -> BudgetPlan:
    """The plan of least expected loss increase whose cost is at most `budget.target` times the original's.

    Args:
        seconds: measures a model's latency relative to the original's; needed for a budget of latency, as are the times
            in `losses`.
        offered: schedules of merging tokens that the budget asks for, one of which the plan has.

    Raises:
        UsageError: the target is out of reach.
    """
    size = resolve_input(original).input_size
    before = count(original, size)
    whole = 1.0 if budget.unit == "latency" else float(getattr(before, budget.unit))
    merging, curve = _shared(losses.menus(budget.unit), budget, whole, offered)
    left = merging.left if merging else 1.0
    saving = whole * (left - budget.target)
    for _ in range(ATTEMPTS):
        chosen = curve.choose(saving)
        if chosen is None:
            break
        plan = _plan(curve, chosen, losses.skipped, merging)
        small = replay(meta_copy(original), plan.folded())
        after = count(small, size)
        share = seconds(small) if seconds is not None else getattr(after, budget.unit) / whole
        if share <= budget.target:
            return BudgetPlan(budget, plan, before, after, curve, tuple(chosen), whole, merging, tuple(offered))
        saving += (share - budget.target) * whole
    raise budget.out_of_reach(left - curve.reachable / whole)


def _shared(
    menus: Sequence[Menu], budget: Budget, whole: float, offered: Sequence[Merging]
) -> tuple[Merging | None, Curve]:
    """The schedule of merging beside which the target costs least, and the curve of what layers save then.

    For the choice, all layers are taken to run on the same share of their tokens.
    """
    curve = spend(menus)
    if not offered:
        return None, curve

    def expected(merging: Merging | None) -> tuple[float, float]:
        left, loss = (merging.left, merging.loss) if merging else (1.0, 0.0)
        chosen = curve.choose(whole * (1 - budget.target / left))
        return float("inf") if chosen is None else loss + sum(option.loss for option in chosen), left

    nothing = [None] if budget.merge_tokens == "auto" else []
    best = min((*nothing, *offered), key=expected)
    if best is None:
        return None, curve
    return best, spend([menu.scaled(best.share(menu.name, menu.kind)) for menu in menus])


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
        UsageError: the target is out of reach, or merging is to be weighed against errors that are not.
        DataError: images that give non-finite activations.
    """
    if budget.merge_tokens == "auto" and not weigh:
        raise UsageError("`merge_tokens='auto'` compares expected loss increases: leave out `without='sensitivity'`")
    offered = offered_merging(original, images, budget, latency_batch=latency_batch, progress=progress)
    losses = measure_losses(
        original,
        images,
        ops=budget.ops,
        budget=None if offered else budget,
        selection=selection,
        weigh=weigh,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    return plan_measured(original, losses, budget, offered, latency_batch=latency_batch, progress=progress)


def plan_measured(
    original: nn.Module,
    losses: Losses,
    budget: Budget,
    offered: Sequence[Merging] = (),
    *,
    latency_batch: int = 8,
    progress: Progress = silent,
) -> BudgetPlan:
    """The plan for a budget from losses measured before; for latency, layers are timed where they are not yet.

    Args:
        offered: what `offered_merging` gives.

    Raises:
        UsageError: the target is out of reach.
    """
    if budget.unit != "latency":
        return plan_budget(original, losses, budget, None, offered)
    losses = timed(original, losses, latency_batch, progress)
    seconds = relative_latency(original, resolve_input(original).input_size, latency_batch, device_of(original))
    return plan_budget(original, losses, budget, seconds, offered)


def offered_merging(
    original: nn.Module,
    images: ImageBatches,
    budget: Budget,
    *,
    latency_batch: int = 8,
    progress: Progress = silent,
) -> tuple[Merging, ...]:
    """The schedules of merging tokens that a budget may or must use, with what they save and lose.

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
    return measure_merging(original, images, budget, schedule or None, latency_batch=latency_batch, progress=progress)


def timed(original: nn.Module, losses: Losses, latency_batch: int = 8, progress: Progress = silent) -> Losses:
    """`losses` with the times of all layers on the device of `original`; as they are where they have them."""
    if losses.times is not None:
        return losses
    examples = random_images(resolve_input(original).input_size, latency_batch, device_of(original))
    return replace(losses, times=time_sites(original, losses.choices(), examples, progress=progress))


def _plan(curve: Curve, chosen: list[Option], skipped: tuple[Skipped, ...], merging: Merging | None) -> Plan:
    pairs = zip(curve.menus, chosen, strict=True)
    layers = tuple(LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    return Plan(layers, skipped, merge_tokens=merging.schedule if merging else ())
