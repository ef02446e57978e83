"""What a site costs as a function of its sizes: linear in them, so that a few counts give all options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.narrow import narrow
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite, family_named
from vitcompact.models.cost import count_modules, meta_copy
from vitcompact.operators.hallucinate import build_core, whole_core

Cost = Mapping[str, float]
"""Cost of one module by unit."""
Measure = Callable[[nn.Module, list[str]], dict[str, Cost]]
"""Costs of some modules of a model, by path."""


@dataclass(frozen=True)
class AttentionCost:
    """Cost per channel of all maps' queries and keys together, and per channel of all heads' values, by unit."""

    num_heads: int
    qk_dim: int
    v_dim: int
    per_qk: Cost
    per_v: Cost

    def saving(self, unit: str, num_maps: int, qk_dim: int, v_dim: int) -> float:
        """What these sizes save."""
        qk = self.num_heads * self.qk_dim - num_maps * qk_dim
        return self.per_qk[unit] * qk + self.per_v[unit] * self.num_heads * (self.v_dim - v_dim)


@dataclass(frozen=True)
class FfnCost:
    """Cost of an FFN with `hidden` units into `outputs`, by unit: of the output matrix and of the rest."""

    hidden: int
    outputs: int
    rest: Cost
    matrix: Cost

    def saving(self, unit: str, hidden: int, rank: int | None = None) -> float:
        """What these sizes save; a product of two matrices costs what its entries do."""
        whole = self.hidden * self.outputs
        entries = hidden * self.outputs if rank is None else rank * (hidden + self.outputs)
        return (1 - hidden / self.hidden) * self.rest[unit] + (1 - entries / whole) * self.matrix[unit]


def attention_costs(model: nn.Module, sites: list[AttentionSite], measure: Measure) -> dict[str, AttentionCost]:
    """Cost of every attention site by its sizes, from three measurements of the model's structure."""
    if not sites:
        return {}
    names = [site.name for site in sites]
    models = {kind: _with_cores(model, sites, kind) for kind in ("whole", "map", "v")}
    costs = {kind: measure(variant, names) for kind, variant in models.items()}
    found = {}
    for name in names:
        core = models["whole"].get_submodule(name)
        assert isinstance(core, CompactAttention)
        qk, v = core.num_heads // 2 * core.qk_dim, core.num_heads * (core.v_dim - core.v_dim // 2)
        slopes = [
            {unit: max((cost - costs[kind][name][unit]) / max(channels, 1), 0.0) for unit, cost in before.items()}
            for before in (costs["whole"][name],)
            for kind, channels in (("map", qk), ("v", v))
        ]
        found[name] = AttentionCost(core.num_heads, core.qk_dim, core.v_dim, *slopes)
    return found


def _with_cores(model: nn.Module, sites: list[AttentionSite], kind: str) -> nn.Module:
    """The structure with whole cores, with half of the heads hallucinated (`map`), or with values half as wide."""
    meta = meta_copy(model)
    for site in sites:
        core = whole_core(meta, site)
        if kind == "map":
            parts = family_named(site.family).parts(meta.get_submodule(site.name))
            half = parts.num_heads - parts.num_heads // 2
            children = tuple((half + i,) if half + i < parts.num_heads else () for i in range(half))
            core = build_core(parts, HeadLayout(tuple(range(half)), children))
        elif kind == "v" and core.fixed_v_dim is None:
            narrow(core, v_dim=core.v_dim // 2)
        meta.set_submodule(site.name, core)
    return meta


def ffn_costs(model: nn.Module, sites: list[FfnSite], measure: Measure) -> dict[str, FfnCost]:
    """Cost of every FFN site by its sizes, from one measurement of the model's structure."""
    costs = measure(model, [name for site in sites for name in (site.name, site.output)]) if sites else {}
    found = {}
    for site in sites:
        weight, bias = matrix(model.get_submodule(site.output))
        whole, output = costs[site.name], dict(costs[site.output])
        rest = {unit: cost - output[unit] for unit, cost in whole.items()}
        if bias is not None and "params" in output:
            output["params"] -= bias.numel()  # it stays whatever becomes of the matrix
        found[site.name] = FfnCost(weight.shape[1], weight.shape[0], rest, output)
    return found


def counted(input_size: tuple[int, int, int]) -> Measure:
    """Parameters and MACs per image of modules, as `Measure`."""

    def measure(model: nn.Module, names: list[str]) -> dict[str, Cost]:
        costs = count_modules(model, names, input_size)
        return {name: {"params": cost.params, "macs": cost.macs} for name, cost in costs.items()}

    return measure
