"""A plan for a budget of latency: what layers were timed to save, corrected by how fast whole plans turn out to run.

Layers are timed alone, and the sum of what they save is not what the model saves: caches, kernels and other programs
see to that. So each plan that comes into question is timed whole, and what is asked of the planner moves up or down
until a plan takes the time that was asked for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from vitcompact.models.cost import meta_copy
from vitcompact.operators.replay import replay
from vitcompact.planning.budget_plan import BudgetPlan, beside, best_merging, built_plan
from vitcompact.planning.candidates import Losses
from vitcompact.planning.knapsack import Curve, Menu, spend
from vitcompact.planning.merging import Merging
from vitcompact.planning.request import Budget
from vitcompact.planning.serving import MOST_READINGS, TOLERANCE
from vitcompact.plans.schema import Plan, Reached
from vitcompact.utils.progress import Progress, silent
from vitcompact.utils.timing import Reading, settled

logger = logging.getLogger("vitcompact")

SURPRISE = 0.1
"""How far from the target the planner's own estimate of a plan may be, before one more reading has to confirm it."""
ATTEMPTS = 16
"""Readings in all."""
CORRECTIONS = 2
"""How often what layers and merging save is corrected, each by itself, before plans are searched."""
FARTHEST = 4.0
"""By this factor at most, each time, either way."""


@dataclass
class _Tried:
    """A plan that was timed, and what was asked of the planner when it came up."""

    request: float
    found: BudgetPlan
    reading: Reading
    times: int = 1

    def meets(self, target: float) -> bool:
        """Whether it takes the target's time: within the tolerance, or as far as its readings can tell."""
        low, high = self.reading.interval
        return abs(self.reading.share - target) <= TOLERANCE * target or low <= target <= high

    def unsure(self, target: float) -> bool:
        """Whether one more reading may decide: on which side of the target it is, or whether it is met at all."""
        low, high = self.reading.interval
        open_ = low <= target * (1 + TOLERANCE) and high >= target * (1 - TOLERANCE)
        surprising = self.times == 1 and abs(self.request / target - 1) > SURPRISE
        return open_ and self.times < MOST_READINGS and (surprising or self.reading.blur > TOLERANCE)


@dataclass
class _Search:
    """The plans timed so far, by structure."""

    target: float
    least: float
    tried: dict[Plan, _Tried] = field(default_factory=dict)

    def closest(self) -> _Tried:
        return min(self.tried.values(), key=lambda each: abs(each.reading.share - self.target))

    def next_request(self) -> float:
        """What to ask of the planner next, in shares of the original's time; the original itself takes 1 for 1."""
        slow, fast = self._ends()
        above, above_share = (slow.request, slow.reading.share) if slow else (1.0, 1.0)
        if fast is None:
            return max(above * self.target / above_share, self.least)
        below, below_share = fast.request, fast.reading.share
        if above <= below or len(self.tried) % 3 == 2:  # one of both may have been misread: do not trust the line alone
            return (above + below) / 2
        along = (self.target - below_share) / max(above_share - below_share, 1e-12)
        return below + min(max(along, 0.1), 0.9) * (above - below)

    def worth_repeating(self) -> _Tried | None:
        """Where no plan lies between those that enclose the target: the one of them that was read least often."""
        ends = [end for end in self._ends() if end is not None and end.times < MOST_READINGS]
        return min(ends, key=lambda end: end.times, default=None)

    def _ends(self) -> tuple[_Tried | None, _Tried | None]:
        """The plans next to the target: one that takes longer, and one that does not."""
        slow = [each for each in self.tried.values() if each.reading.share > self.target]
        fast = [each for each in self.tried.values() if each.reading.share <= self.target]
        return (
            min(slow, key=lambda each: each.request, default=None),
            max(fast, key=lambda each: each.request, default=None),
        )


def plan_latency(
    original: nn.Module,
    losses: Losses,
    budget: Budget,
    read: Callable[[Sequence[nn.Module]], list[Reading]],
    offered: Sequence[Merging] = (),
    progress: Progress = silent,
) -> BudgetPlan:
    """The plan of least expected loss increase that takes `budget.target` of the original's time.

    Within `TOLERANCE`, or as exactly as the readings tell; where no plan comes as close, the closest, with a warning.

    Args:
        losses: with the times of all layers.
        read: times structures relative to the original, in the same rounds.
        offered: schedules of merging tokens that the budget asks for, one of which the plan has.

    Raises:
        UsageError: the target is out of reach.
    """
    planner = _Planner(original, losses, budget, losses.menus("latency"), offered)
    if offered:
        planner = _corrected(planner, read, progress)
    search = _Search(budget.target, planner.least)
    request, again = budget.target, False
    progress.start("timing plans", ATTEMPTS)
    for _ in range(ATTEMPTS):
        found = planner.at(request)
        one = search.tried.get(found.plan)
        if one is not None and not again:
            one = search.worth_repeating()
            if one is None:
                break
        (reading,) = read([planner.structure((found if one is None else one.found).plan)])
        if one is None:
            one = search.tried[found.plan] = _Tried(request, found, reading)
        else:
            one.reading, one.times = one.reading + reading, one.times + 1
        progress.advance(note=f"{one.reading.share:.3f} of the time")
        again = one.unsure(budget.target)
        if one.meets(budget.target) and not again:
            break
        if not again and one.request <= planner.least and one.reading.interval[0] > budget.target:
            progress.finish()
            raise budget.out_of_reach(one.reading.share)
        request = one.request if again else search.next_request()
    progress.finish()
    return _taken(search.closest(), budget)


def _corrected(planner: _Planner, read: Callable[[Sequence[nn.Module]], list[Reading]], progress: Progress) -> _Planner:
    """A planner to which layers and merging save what each by itself does in a plan near the target.

    What is asked of a planner scales both alike: where one of them was misread, the target would be met by too much of
    the one and too little of the other.
    """
    progress.start("timing merging and layers", CORRECTIONS)
    seen: set[Plan] = set()
    for _ in range(CORRECTIONS):
        found = planner.at(planner.budget.target)
        if found.plan in seen:
            break
        seen.add(found.plan)
        planner = planner.corrected(*_told_apart(planner, found, read))
        progress.advance()
    progress.finish()
    return planner


def _told_apart(
    planner: _Planner, found: BudgetPlan, read: Callable[[Sequence[nn.Module]], list[Reading]]
) -> tuple[float, float]:
    """How far a plan's layers, and its merging, are from what they were promised to save: see `_Planner.corrected`.

    Both are read in the same rounds; 1 where the readings do not contradict the promise.
    """
    parts = [found.plan] if found.merging is None else [replace(found.plan, layers=()), found.plan]
    structures = [planner.structure(part) for part in parts]
    *merged, whole = settled(lambda: read(structures), TOLERANCE, MOST_READINGS)
    layers = merging = left = 1.0
    if found.merging is not None:
        left = merged[0].share
        if not _within(merged[0], found.merging.left) and found.merging.left < 1:
            merging = _bounded(math.log(min(left, 1 - 1e-6)) / math.log(found.merging.left))
        whole = whole.beside(merged[0])
    promised = sum(option.saving for option in found.chosen) / left
    if found.plan.layers and not _within(whole, 1 - promised):
        layers = _bounded((1 - whole.share) / promised)
    return layers, merging


def _within(reading: Reading, share: float) -> bool:
    low, high = reading.interval
    return low <= share <= high


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / FARTHEST), FARTHEST)


def _taken(one: _Tried, budget: Budget) -> BudgetPlan:
    low, high = one.reading.interval
    told = f"{one.reading.share:.3f} of the original's time (95 % interval {low:.3f} to {high:.3f})"
    if not one.meets(budget.target):
        logger.warning("`target_latency=%g` was not met: the closest plan takes %s", budget.target, told)
    elif one.reading.blur > TOLERANCE:
        logger.warning(
            "the machine was busy while plans were timed: for `target_latency=%g` the plan takes %s, as far as that "
            "can be told",
            *(budget.target, told),
        )
    left, serving = one.reading.share, budget.serving
    reached = Reached("latency", budget.target, left, (low, high), serving.backend, serving.batch_size, serving.dtype)
    return one.found.reaching(reached)


class _Planner:
    """Plans by what is asked for, in shares of the original's time."""

    def __init__(
        self,
        original: nn.Module,
        losses: Losses,
        budget: Budget,
        menus: Sequence[Menu],
        offered: Sequence[Merging],
        structures: dict[Plan, nn.Module] | None = None,
    ) -> None:
        self.original, self.losses, self.budget = original, losses, budget
        self.menus, self.offered = menus, offered
        left = min((merging.left for merging in offered), default=1.0)
        self.curves: dict[Merging | None, Curve] = {None: spend(self.menus)}
        self.structures = {} if structures is None else structures
        self.least = max(left * (1.0 - self.curves[None].most), 1e-3)
        """The least that can be asked for, or near it."""

    def at(self, request: float) -> BudgetPlan:
        """The plan for a request; the smallest where it asks for less than that."""
        wanted = replace(self.budget, target=min(request, 1 - 1e-6))
        merging = best_merging(self.curves[None], wanted, 1.0, self.offered)
        if merging is not None and merging not in self.curves:
            self.curves[merging] = beside(self.menus, merging)
        curve = self.curves[merging]
        chosen = curve.choose(min((merging.left if merging else 1.0) - request, curve.most))
        assert chosen is not None  # what is asked for is at most what there is
        return built_plan(self.original, self.losses, self.budget, curve, chosen, merging, self.offered)

    def structure(self, plan: Plan) -> nn.Module:
        """The folded model of a plan, without values; of one plan always the same one."""
        if plan not in self.structures:
            self.structures[plan] = replay(meta_copy(self.original), plan.folded())
        return self.structures[plan]

    def corrected(self, layers: float, merging: float) -> _Planner:
        """One to which layers save `layers` times as much as to this one, and merging leaves this power of the time."""
        offered = [replace(each, left=each.left**merging) for each in self.offered]
        menus = [menu.scaled(layers) for menu in self.menus]
        return _Planner(self.original, self.losses, self.budget, menus, offered, self.structures)
