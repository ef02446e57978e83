"""Two shares spent where they cost least: as much of each operator as if every layer had its share, unevenly."""

from __future__ import annotations

from typing import get_args

from torch import nn

from vitcompact.data import ImageBatches
from vitcompact.errors import UsageError
from vitcompact.operators import OPERATORS
from vitcompact.options.selection import Allocation
from vitcompact.planning.candidates import Losses
from vitcompact.planning.curves import Curves, measured_losses
from vitcompact.planning.knapsack import spend
from vitcompact.planning.request import Budget
from vitcompact.planning.scope import Wanted, wanted_layers
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.plans.specs import OperatorSpec
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
    weigh: bool = True,
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Plan:
    """The plan in which each operator saves the MACs that it would save with equal shares, at the least expected loss.

    On a model whose layers all cost the same, shares of heads and ranks are so on average.

    Args:
        original: in eval mode and float32; left as it is.
        curves: what was measured before, where it holds; what is measured goes there.
        weigh: as in `measure_losses`.

    Raises:
        NothingToCompactError, UsageError, DataError: as `wanted_layers` and `measure_losses`.
    """
    wanted = wanted_layers(original, selection)
    ops = tuple(dict.fromkeys(name for _, asked in wanted.layers for name, _ in asked))
    losses = measured_losses(
        original, images, curves, ops=ops, selection=selection, weigh=weigh, cache_bytes=cache_bytes, progress=progress
    )
    chosen: dict[str, tuple[OperatorSpec, ...]] = {}
    for name in ops:
        kind = OPERATORS[name].kind
        curve = spend([menu for menu in losses.menus("macs") if menu.kind == kind])
        options = curve.choose(min(_uniform(losses, wanted, name), curve.most))
        assert options is not None  # no more than the most is asked for
        chosen |= {menu.name: option.operators for menu, option in zip(curve.menus, options, strict=True)}
    layers = (LayerPlan(site.name, site.kind, chosen[site.name]) for site in losses.sites)
    return Plan(tuple(layer for layer in layers if layer.operators), losses.skipped)


def _uniform(losses: Losses, wanted: Wanted, name: str) -> float:
    """MACs that an operator saves where every layer has its share of it."""
    saved = 0.0
    for site, asked in wanted.layers:
        size, cost = dict(asked).get(name), losses.costs.get(site.name)
        left = None if size is None or cost is None else OPERATORS[name].resized(size, cost.sizes)
        if left is not None and cost is not None:
            saved += cost.saving("macs", **left)
    return saved
