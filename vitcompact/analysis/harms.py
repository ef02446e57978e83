"""Harm curves and costs of every site of a model: what a global budget is spent on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitcompact.analysis.curves import AttentionCurve, FfnCurve, attention_curve, ffn_curve
from vitcompact.analysis.sensitivity import sensitivity
from vitcompact.analysis.site_cost import AttentionCost, FfnCost, Measure, attention_costs, both, counted, ffn_costs
from vitcompact.data import ImageBatches, first_images, resolve_input
from vitcompact.families import Anatomy, AttentionSite, FfnSite, inspect
from vitcompact.layers.pointwise import matrix
from vitcompact.plan.budget import Menu, Option
from vitcompact.plan.request import Unit
from vitcompact.plan.schema import Skipped
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


@dataclass(frozen=True)
class Harms:
    """Harm curves and costs of every site of a model, and the sites in forward order: enough for any budget."""

    attention: dict[str, tuple[AttentionCurve, AttentionCost]]
    ffn: dict[str, tuple[FfnCurve, FfnCost]]
    order: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    branches: int = 1
    total_seconds: float = 0.0

    def menus(self, unit: Unit) -> list[Menu]:
        """Everything that can be done to each site, its saving in `unit`."""
        heads = [Menu(name, "attention", _attention(*both, unit)) for name, both in self.attention.items()]
        wide = [Menu(name, "ffn", _ffn(*both, unit, self.branches)) for name, both in self.ffn.items()]
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


def _ffn(curve: FfnCurve, cost: FfnCost, unit: Unit, branches: int) -> tuple[Option, ...]:
    options = []
    for hidden, harm in {cost.hidden: 0.0, **curve.hidden}.items():
        for rank, rank_harm in {0: 0.0, **curve.rank}.items():
            parts: list[tuple[OperatorSpec | None, float]] = [
                (NeuronsSpec(hidden) if hidden < cost.hidden else None, harm),
                (FactorizeSpec(rank, branches) if rank else None, rank_harm),
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
        selection: `only` and `protect` leave layers alone; `branches` is for the factors of FFNs.
        seconds: seconds of modules (`latency.timed`), for a budget of latency.
        weigh: multiply errors by what they do to the model's output; off, an error counts by its size alone.
    """
    ops = tuple(ops)
    images = first_images(images, _images_needed(original, next(iter(images))))
    anatomy = inspect(original)
    selection = selection or Selection()
    sites = _covered(anatomy, selection)
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
        selection.branches,
        0.0 if seconds is None else seconds(original, [""])[""]["latency"],
    )


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
