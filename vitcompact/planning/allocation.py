"""Two shares spent where they cost least: the MACs that equal shares would save, by the same operators, unevenly."""

from __future__ import annotations

from typing import get_args

from torch import nn

from vitcompact.data import ImageBatches
from vitcompact.errors import UsageError
from vitcompact.operators import OPERATORS
from vitcompact.options.selection import Allocation, Keep
from vitcompact.planning.candidates import Losses
from vitcompact.planning.curves import Curves, measured_losses
from vitcompact.planning.knapsack import spend
from vitcompact.planning.request import Budget
from vitcompact.planning.scope import Wanted, wanted_layers
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.utils.progress import Progress, silent


def check_allocation(
    allocation: Allocation | None, selection: Selection, budget: Budget | None, plan: object, images: object
) -> None:
    """Refuse what does not go with an allocation.

    Raises:
        UsageError: no such allocation; `global` without images, or beside a target, a plan, or other forms of maps.
    """
    if allocation is not None and allocation not in get_args(Allocation):
        raise UsageError(f"`allocation` takes 'uniform' or 'global', got {allocation!r}")
    if allocation is not None and budget is not None:
        raise UsageError(f"`allocation` is for `ratio` and `rank_ratio`: leave it out, or `target_{budget.unit}`")
    if allocation != "global":
        return
    if plan is not None:
        raise UsageError("`plan` says what is compacted: leave out `allocation`")
    if images is None:
        raise UsageError("`allocation='global'` needs images to measure what each layer can do without: give `images`")
    if selection.filter_rank or selection.terms != ("identity",):
        raise UsageError("`allocation='global'` weighs plain hallucinated maps only: leave out `terms`, `filter_rank`")


def plan_shares(
    original: nn.Module,
    images: ImageBatches,
    selection: Selection,
    *,
    curves: Curves | None = None,
    keep: Keep = "both",
    weigh: bool = True,
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Plan:
    """The plan that saves the MACs of equal shares with the same operators, at the least expected loss.

    How much of it heads save and how much ranks is left to the loss too: keeping each at its share of the saving gains
    nothing over equal shares (docs/method.md).

    Args:
        original: in eval mode and float32; left as it is.
        curves: what was measured before, where it holds; what is measured goes there.
        keep, weigh: as in `measure_losses`.

    Raises:
        NothingToCompactError, UsageError, DataError: as `wanted_layers` and `measure_losses`.
    """
    wanted = wanted_layers(original, selection)
    ops = tuple(dict.fromkeys(name for _, asked in wanted.layers for name, _ in asked))
    losses = measured_losses(
        *(original, images, curves),
        ops=ops,
        selection=selection,
        keep=keep,
        weigh=weigh,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    curve = spend(losses.menus("macs"))
    chosen = curve.choose(min(_uniform(losses, wanted), curve.most))
    assert chosen is not None  # no more than the most is asked for
    pairs = zip(curve.menus, chosen, strict=True)
    layers = (LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    return Plan(tuple(layers), losses.skipped)


def _uniform(losses: Losses, wanted: Wanted) -> float:
    """MACs that are saved where every layer has its shares."""
    saved = 0.0
    for site, asked in wanted.layers:
        cost = losses.costs.get(site.name)
        for name, size in asked:
            left = None if cost is None else OPERATORS[name].resized(size, cost.sizes)
            if left is not None and cost is not None:
                saved += cost.saving("macs", **left)
    return saved
