"""A plan for a global budget: harm curves of every site, costs of every size, and who pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitcompact.analysis.cost import Cost, count, meta_copy
from vitcompact.analysis.curves import AttentionCurve, FfnCurve, attention_curve, ffn_curve
from vitcompact.analysis.latency import relative_latency, timed
from vitcompact.analysis.sensitivity import sensitivity
from vitcompact.analysis.site_cost import AttentionCost, FfnCost, Measure, attention_costs, both, counted, ffn_costs
from vitcompact.data import ImageBatches, first_images, resolve_input
from vitcompact.errors import UsageError
from vitcompact.families import Anatomy, AttentionSite, FfnSite, inspect
from vitcompact.layers.pointwise import matrix
from vitcompact.operators.replay import replay
from vitcompact.plan.budget import Curve, Menu, Option, spend
from vitcompact.plan.request import Budget, Unit
from vitcompact.plan.schema import LayerPlan, Plan, Skipped
from vitcompact.plan.selection import Selection
from vitcompact.plan.specs import SPECS, FactorizeSpec, NeuronsSpec, OperatorSpec, ThinQkSpec, ThinVoSpec
from vitcompact.progress import Progress, silent
from vitcompact.streams.capture import Site
from vitcompact.streams.store import ActivationStore
from vitcompact.streams.streams import Streams
from vitcompact.streams.walker import BlockWalker, walked_blocks

ROWS_PER_UNIT = 8
MIN_IMAGES, MAX_IMAGES = 96, 512
"""Images that a plan is made from: enough rows for every hidden unit, within these bounds."""
ATTEMPTS = 6
"""How often a plan is tightened where the exact cost of its structure misses the target by a little."""


@dataclass(frozen=True)
class Harms:
    """Harm curves and costs of every site of a model, and the sites in forward order: enough for any budget."""

    attention: dict[str, tuple[AttentionCurve, AttentionCost]]
    ffn: dict[str, tuple[FfnCurve, FfnCost]]
    order: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    total_seconds: float = 0.0

    def menus(self, unit: Unit) -> list[Menu]:
        """Everything that can be done to each site, its saving in `unit`."""
        heads = [Menu(name, "attention", _attention(*both, unit)) for name, both in self.attention.items()]
        wide = [Menu(name, "ffn", _ffn(*both, unit)) for name, both in self.ffn.items()]
        return sorted([*heads, *wide], key=lambda menu: self.order.index(menu.name))


def _attention(curve: AttentionCurve, cost: AttentionCost, unit: Unit) -> tuple[Option, ...]:
    maps: list[tuple[OperatorSpec | None, float, int]] = [(None, 0.0, cost.num_heads)]
    maps += [(spec, harm, len(spec.kept)) for spec, harm in curve.hallucinate]
    options = []
    for spec, harm, num_maps in maps:
        for qk, qk_harm in {cost.qk_dim: 0.0, **curve.qk}.items():
            for v, v_harm in {cost.v_dim: 0.0, **curve.v}.items():
                parts: list[tuple[OperatorSpec | None, float]] = [
                    (spec, harm),
                    (ThinQkSpec(qk) if qk < cost.qk_dim else None, qk_harm * num_maps / cost.num_heads),
                    (ThinVoSpec(v) if v < cost.v_dim else None, v_harm),
                ]
                options.append(_option(parts, cost.saving(unit, num_maps, qk, v)))
    return tuple(options)


def _ffn(curve: FfnCurve, cost: FfnCost, unit: Unit) -> tuple[Option, ...]:
    options = []
    for hidden, harm in {cost.hidden: 0.0, **curve.hidden}.items():
        for rank, rank_harm in {0: 0.0, **curve.rank}.items():
            parts: list[tuple[OperatorSpec | None, float]] = [
                (NeuronsSpec(hidden) if hidden < cost.hidden else None, harm),
                (FactorizeSpec(rank, 1) if rank else None, rank_harm),
            ]
            options.append(_option(parts, cost.saving(unit, hidden, rank or None)))
    return tuple(options)


def _option(parts: Sequence[tuple[OperatorSpec | None, float]], saving: float) -> Option:
    used = [(spec, harm) for spec, harm in parts if spec is not None]
    return Option(tuple(spec for spec, _ in used), saving, tuple(harm for _, harm in used))


def measure_harms(
    original: nn.Module,
    images: ImageBatches,
    *,
    ops: Iterable[str] = tuple(SPECS),
    selection: Selection | None = None,
    weigh: bool = True,
    seconds: Measure | None = None,
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Harms:
    """Walk the original once over the images and measure what every size of every site would do.

    Args:
        original: in eval mode and float32; left as it is.
        ops: operators to consider.
        selection: `only` and `protect` leave layers alone.
        seconds: seconds of modules (`latency.timed`), for a budget of latency.
        weigh: multiply errors by what they do to the model's output; off, all layers' relative errors count alike.
    """
    ops = tuple(ops)
    images = first_images(images, _images_needed(original, next(iter(images))))
    anatomy = inspect(original)
    sites = _covered(anatomy, selection or Selection())
    walker = BlockWalker(original, walked_blocks(original, sites), next(iter(images))[:2].to(_device(original)))
    sites = [site for site in sites if site.block not in walker.unreachable]
    known = sensitivity(original, sites, images, progress=progress) if weigh else None
    attention: dict[str, AttentionCurve] = {}
    ffn: dict[str, FfnCurve] = {}
    by_block = {name: [site for site in sites if site.block == name] for name in walker.blocks}
    last = max((i for i, name in enumerate(walker.blocks) if by_block[name]), default=-1)
    progress.start("measuring layers", last + 1)
    with torch.no_grad(), ActivationStore(cache_bytes) as store:
        streams = Streams(original, original, walker, images, store, known, drift=False)
        for index in range(last + 1):
            here = by_block[walker.blocks[index]]
            streams.enter(index, here)
            for site in here:
                if isinstance(site, AttentionSite):
                    attention[site.name] = attention_curve(streams, site, ops)
                else:
                    ffn[site.name] = ffn_curve(streams, site, ops)
            streams.leave(here)
            progress.advance()
    progress.finish()
    measure = counted(resolve_input(original).input_size)
    if seconds is not None:
        measure = both(measure, seconds)
    heads = attention_costs(original, [site for site in sites if isinstance(site, AttentionSite)], measure)
    wide = ffn_costs(original, [site for site in sites if isinstance(site, FfnSite)], measure)
    return Harms(
        {name: (curve, heads[name]) for name, curve in attention.items()},
        {name: (curve, wide[name]) for name, curve in ffn.items()},
        tuple(site.name for name in walker.blocks for site in by_block[name]),
        anatomy.skipped,
        0.0 if seconds is None else seconds(original, [""])[""]["latency"],
    )


@dataclass(frozen=True)
class BudgetPlan:
    """A plan for a budget with what is expected of it.

    Attributes:
        before, after: cost of the original and of the folded result.
        curve: the least harm at every saving.
        chosen: the option taken from each of the curve's menus.
        whole: the original's cost in the budget's unit.
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
        seconds: measures a model's latency relative to the original's; needed for a budget of latency.

    Raises:
        UsageError: the target is out of reach.
    """
    size = resolve_input(original).input_size
    before = count(original, size)
    curve = spend(harms.menus(budget.unit))
    whole = harms.total_seconds if budget.unit == "latency" else float(getattr(before, budget.unit))
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
    least = max(1 - curve.reachable / whole, 0.0)
    raise UsageError(
        f"--target-{budget.unit} {budget.target:g} is out of reach with these operators: about {least:.2f} is the least"
    )


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
    size, device = resolve_input(original).input_size, _device(original)
    by_time = budget.unit == "latency"
    harms = measure_harms(
        original,
        images,
        ops=budget.ops,
        selection=selection,
        weigh=weigh,
        seconds=timed(size, latency_batch, device) if by_time else None,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    return plan_budget(
        original, harms, budget, relative_latency(original, size, latency_batch, device) if by_time else None
    )


def _plan(curve: Curve, chosen: list[Option], skipped: tuple[Skipped, ...]) -> Plan:
    pairs = zip(curve.menus, chosen, strict=True)
    layers = tuple(LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    return Plan(layers, skipped)


@torch.no_grad()
def _images_needed(model: nn.Module, batch: torch.Tensor) -> int:
    """Images that give every FFN `ROWS_PER_UNIT` tokens for each hidden unit: planning needs no more than that."""
    needed = MIN_IMAGES
    rows: dict[str, int] = {}
    sites = inspect(model).ffn

    def keep(site: FfnSite) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows[site.name] = args[0].numel() // args[0].shape[site.channel_dim]

        return hook

    handles = [model.get_submodule(site.output).register_forward_pre_hook(keep(site)) for site in sites]
    try:
        model(batch[:1].to(_device(model)))
    finally:
        for handle in handles:
            handle.remove()
    for site in sites:
        units = matrix(model.get_submodule(site.output))[0].shape[1]
        needed = max(needed, math.ceil(ROWS_PER_UNIT * units / max(rows.get(site.name, 1), 1)))
    return min(needed, MAX_IMAGES)


def _covered(anatomy: Anatomy, selection: Selection) -> list[Site]:
    heads = [site for site in anatomy.attention if selection.covers(site.name, "heads")]
    return [*heads, *(site for site in anatomy.ffn if selection.covers(site.name, "ffn"))]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
