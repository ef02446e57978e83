"""A plan for a global budget: harm curves of every site, costs of every size, and who pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vitcompact.analysis.cost import Cost, count, meta_copy
from vitcompact.analysis.curves import AttentionCurve, FfnCurve, attention_curve, ffn_curve
from vitcompact.analysis.sensitivity import sensitivity
from vitcompact.analysis.site_cost import AttentionCost, FfnCost, attention_costs, ffn_costs
from vitcompact.data import ImageBatches, resolve_input
from vitcompact.errors import UsageError
from vitcompact.families import Anatomy, AttentionSite, FfnSite, inspect
from vitcompact.operators.replay import replay
from vitcompact.plan.budget import Curve, Menu, Option, spend
from vitcompact.plan.schema import LayerPlan, Plan, Skipped
from vitcompact.plan.selection import Selection
from vitcompact.plan.specs import SPECS, FactorizeSpec, NeuronsSpec, OperatorSpec, ThinQkSpec, ThinVoSpec
from vitcompact.progress import Progress, silent
from vitcompact.streams.capture import Site
from vitcompact.streams.store import ActivationStore
from vitcompact.streams.streams import Streams
from vitcompact.streams.walker import BlockWalker, walked_blocks

Unit = Literal["macs", "params"]
ATTEMPTS = 6


@dataclass(frozen=True)
class Harms:
    """Harm curves and costs of every site of a model: enough to plan for any budget."""

    attention: dict[str, tuple[AttentionCurve, AttentionCost]]
    ffn: dict[str, tuple[FfnCurve, FfnCost]]
    skipped: tuple[Skipped, ...]

    def menus(self, unit: Unit) -> list[Menu]:
        """Everything that can be done to each site, its saving in `unit`."""
        index = 0 if unit == "params" else 1
        heads = [Menu(name, "attention", _attention(*both, index)) for name, both in self.attention.items()]
        return [*heads, *(Menu(name, "ffn", _ffn(*both, index)) for name, both in self.ffn.items())]


def _attention(curve: AttentionCurve, cost: AttentionCost, index: int) -> tuple[Option, ...]:
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
                options.append(_option(parts, cost.saving(num_maps, qk, v)[index]))
    return tuple(options)


def _ffn(curve: FfnCurve, cost: FfnCost, index: int) -> tuple[Option, ...]:
    options = []
    for hidden, harm in {cost.hidden: 0.0, **curve.hidden}.items():
        for rank, rank_harm in {0: 0.0, **curve.rank}.items():
            parts: list[tuple[OperatorSpec | None, float]] = [
                (NeuronsSpec(hidden) if hidden < cost.hidden else None, harm),
                (FactorizeSpec(rank, 1) if rank else None, rank_harm),
            ]
            options.append(_option(parts, cost.saving(hidden, rank or None)[index]))
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
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Harms:
    """Walk the original once over the images and measure what every size of every site would do.

    Args:
        original: in eval mode and float32; left as it is.
        ops: operators to consider.
        selection: `only` and `protect` leave layers alone.
        weigh: multiply errors by what they do to the model's output; off, all layers' relative errors count alike.
    """
    ops = tuple(ops)
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
    size = resolve_input(original).input_size
    heads = attention_costs(original, [site for site in sites if isinstance(site, AttentionSite)], size)
    wide = ffn_costs(original, [site for site in sites if isinstance(site, FfnSite)], size)
    return Harms(
        {name: (curve, heads[name]) for name, curve in attention.items()},
        {name: (curve, wide[name]) for name, curve in ffn.items()},
        anatomy.skipped,
    )


@dataclass(frozen=True)
class BudgetPlan:
    """A plan for a budget with what is expected of it.

    Attributes:
        before, after: cost of the original and of the folded result.
        harm: expected squared change of the output.
        curve: the least harm at every saving.
    """

    plan: Plan
    before: Cost
    after: Cost
    harm: float
    curve: Curve


def plan_budget(original: nn.Module, harms: Harms, target: float, unit: Unit = "macs") -> BudgetPlan:
    """The plan of least expected harm whose cost is at most `target` times the original's.

    Raises:
        UsageError: the target is not a fraction, or out of reach.
    """
    if not 0 < target < 1:
        raise UsageError(f"--target-{unit} must be between 0 and 1 (both exclusive), got {target}")
    size = resolve_input(original).input_size
    before = count(original, size)
    curve = spend(harms.menus(unit))
    whole = getattr(before, unit)
    saving = whole * (1 - target)
    for _ in range(ATTEMPTS):
        chosen = curve.choose(saving)
        if chosen is None:
            break
        plan = _plan(curve, chosen, harms.skipped)
        after = count(replay(meta_copy(original), plan.folded()), size)
        excess = getattr(after, unit) - whole * target
        if excess <= 0:
            return BudgetPlan(plan, before, after, sum(option.harm for option in chosen), curve)
        saving += excess
    least = 1 - curve.reachable / whole
    raise UsageError(f"--target-{unit} {target:g} is out of reach with these operators: the least is about {least:.3f}")


def _plan(curve: Curve, chosen: list[Option], skipped: tuple[Skipped, ...]) -> Plan:
    pairs = zip(curve.menus, chosen, strict=True)
    layers = tuple(LayerPlan(menu.name, menu.kind, option.operators) for menu, option in pairs if option.operators)
    return Plan(layers, skipped)


def _covered(anatomy: Anatomy, selection: Selection) -> list[Site]:
    heads = [site for site in anatomy.attention if selection.covers(site.name, "heads")]
    return [*heads, *(site for site in anatomy.ffn if selection.covers(site.name, "ffn"))]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
