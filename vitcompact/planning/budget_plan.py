"""A plan for a global budget, from losses measured before: who pays, and what is expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from vitcompact.data import resolve_input
from vitcompact.models.cost import Cost, count, meta_copy
from vitcompact.operators.replay import replay
from vitcompact.planning.candidates import Losses
from vitcompact.planning.knapsack import Curve, Menu, Option, spend
from vitcompact.planning.merging import Merging
from vitcompact.planning.predicted import Predicted
from vitcompact.planning.request import Budget
from vitcompact.plans.schema import LayerPlan, Plan, Reached

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
        predicted: what losses mean to answers, where that is known.
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
    predicted: Predicted | None = None

    @property
    def loss(self) -> float:
        """Expected squared change of the model's output per image."""
        return sum(option.loss for option in self.chosen) + (self.merging.loss if self.merging else 0.0)

    def reaching(self, reached: Reached) -> BudgetPlan:
        """The same, with what its plan was found to leave."""
        return replace(self, plan=replace(self.plan, reached=reached))


def plan_budget(original: nn.Module, losses: Losses, budget: Budget, offered: Sequence[Merging] = ()) -> BudgetPlan:
    """The plan of least expected loss increase whose cost is at most `budget.target` times the original's.

    Args:
        budget: of MACs or parameters, which can be counted; of latency see `plan_latency`.
        offered: schedules of merging tokens that the budget asks for, one of which the plan has.

    Raises:
        UsageError: the target is out of reach.
    """
    whole = float(getattr(losses.whole, budget.unit))
    menus = losses.menus(budget.unit)
    curve = spend(menus)
    merging = best_merging(curve, budget, whole, offered)
    curve = beside(menus, merging) if merging else curve
    left = merging.left if merging else 1.0
    saving = whole * (left - budget.target)
    for _ in range(ATTEMPTS):
        chosen = curve.choose(saving)
        if chosen is None:
            break
        found = built_plan(original, losses, budget, curve, chosen, merging, offered)
        share = getattr(found.after, budget.unit) / whole
        if share <= budget.target:
            return found.reaching(Reached(budget.unit, budget.target, share))
        saving = sum(option.saving for option in chosen) + (share - budget.target) * whole
    raise budget.out_of_reach(left - curve.reachable / whole)


def built_plan(
    original: nn.Module,
    losses: Losses,
    budget: Budget,
    curve: Curve,
    chosen: Sequence[Option],
    merging: Merging | None,
    offered: Sequence[Merging],
) -> BudgetPlan:
    """What was chosen from a curve's menus as a plan, its exact cost counted on a copy without memory."""
    size = resolve_input(original).input_size
    pairs = zip(curve.menus, chosen, strict=True)
    layers = tuple(LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    plan = Plan(layers, losses.skipped)
    if merging is not None:
        plan = replace(plan, merge_tokens=merging.schedule, merge_by=merging.by)
    after = count(replay(meta_copy(original), plan.folded()), size, spent=True)
    whole = 1.0 if budget.unit == "latency" else float(getattr(losses.whole, budget.unit))
    return BudgetPlan(
        *(budget, plan, losses.whole, after, curve, tuple(chosen), whole, merging, tuple(offered)), losses.predicted
    )


def best_merging(curve: Curve, budget: Budget, whole: float, offered: Sequence[Merging]) -> Merging | None:
    """The schedule of merging beside which the target costs least.

    For the choice, all layers are taken to run on the same share of their tokens.

    Args:
        curve: what layers save on all of their tokens.
    """

    def expected(merging: Merging | None) -> tuple[float, float]:
        left, loss = (merging.left, merging.loss) if merging else (1.0, 0.0)
        chosen = curve.choose(whole * (1 - budget.target / left))
        return float("inf") if chosen is None else loss + sum(option.loss for option in chosen), left

    nothing = [None] if budget.merge_tokens == "auto" or not offered else []
    return min((*nothing, *offered), key=expected)


def beside(menus: Sequence[Menu], merging: Merging) -> Curve:
    """What layers save on the tokens that merging leaves them."""
    return spend([menu.scaled(merging.share(menu.name, menu.kind)) for menu in menus])
