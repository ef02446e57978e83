"""What a site costs as a function of its sizes: linear in them, so that a few counts give all options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.narrow import narrow
from vitcompact.layers.pointwise import matrix
from vitcompact.models.base import AttentionSite, FfnSite
from vitcompact.models.cores import build_core, parts_of, whole_core
from vitcompact.models.cost import Cost, count_modules, meta_copy

Units = Mapping[str, float]
"""`params` and `macs` of one module, or of a part of it."""
Sizes = Mapping[str, int]
"""Sizes of a site by name: `maps`, `qk`, `v` of an attention layer, `hidden`, `rank` (0: not factorized) of an FFN."""


@dataclass(frozen=True)
class AttentionCost:
    """Cost per channel of all maps' queries and keys together, and per channel of all heads' values, by unit."""

    num_heads: int
    qk_dim: int
    v_dim: int
    per_qk: Units
    per_v: Units

    @property
    def sizes(self) -> Sizes:
        """Those of the layer as it is."""
        return {"maps": self.num_heads, "qk": self.qk_dim, "v": self.v_dim}

    def saving(self, unit: str, maps: int, qk: int, v: int) -> float:
        """What these sizes save."""
        channels = self.num_heads * self.qk_dim - maps * qk
        return self.per_qk[unit] * channels + self.per_v[unit] * self.num_heads * (self.v_dim - v)


@dataclass(frozen=True)
class FfnCost:
    """Cost of an FFN with `hidden` units into `outputs`, by unit: of the output matrix and of the rest."""

    hidden: int
    outputs: int
    rest: Units
    matrix: Units

    @property
    def sizes(self) -> Sizes:
        """Those of the layer as it is."""
        return {"hidden": self.hidden, "rank": 0, "outputs": self.outputs}

    def saving(self, unit: str, hidden: int, rank: int = 0, outputs: int = 0) -> float:
        """What these sizes save; a product of two matrices costs what its entries do."""
        whole = self.hidden * self.outputs
        entries = rank * (hidden + self.outputs) if rank else hidden * self.outputs
        return (1 - hidden / self.hidden) * self.rest[unit] + (1 - entries / whole) * self.matrix[unit]


SiteCost = AttentionCost | FfnCost


def site_costs(
    model: nn.Module, sites: Sequence[AttentionSite | FfnSite], input_size: tuple[int, int, int]
) -> tuple[Cost, dict[str, SiteCost]]:
    """Parameters and MACs per image of the model, and of every site by its sizes.

    Args:
        input_size: `(channels, height, width)` of one image.
    """
    ffns = [site for site in sites if isinstance(site, FfnSite)]
    names = [name for site in ffns for name in (site.name, site.output)]
    costs = count_modules(model, ["", *names], input_size)
    heads = _attention_costs(model, [site for site in sites if isinstance(site, AttentionSite)], input_size)
    return costs[""], {**heads, **{site.name: _ffn_cost(model, site, costs) for site in ffns}}


def _attention_costs(
    model: nn.Module, sites: list[AttentionSite], input_size: tuple[int, int, int]
) -> dict[str, AttentionCost]:
    """Cost of every attention site by its sizes, from three counts of the model's structure."""
    if not sites:
        return {}
    names = [site.name for site in sites]
    models = {kind: _with_cores(model, sites, kind) for kind in ("whole", "map", "v")}
    cores = {name: models["whole"].get_submodule(name) for name in names}
    costs = {
        kind: {name: asdict(cost) for name, cost in count_modules(variant, names, input_size, spent=True).items()}
        for kind, variant in models.items()
    }
    found = {}
    for name, core in cores.items():
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
            parts = parts_of(meta, site)
            half = parts.num_heads - parts.num_heads // 2
            children = tuple((half + i,) if half + i < parts.num_heads else () for i in range(half))
            core = build_core(parts, HeadLayout(tuple(range(half)), children))
        elif kind == "v" and core.fixed_v_dim is None:
            narrow(core, v_dim=core.v_dim // 2)
        meta.set_submodule(site.name, core)
    return meta


def _ffn_cost(model: nn.Module, site: FfnSite, costs: Mapping[str, Cost]) -> FfnCost:
    """Cost of an FFN by its sizes, from those of its modules."""
    weight, bias = matrix(model.get_submodule(site.output))
    output = asdict(costs[site.output])
    rest = {unit: cost - output[unit] for unit, cost in asdict(costs[site.name]).items()}
    if bias is not None:
        output["params"] -= bias.numel()  # it stays whatever becomes of the matrix
    return FfnCost(weight.shape[1], weight.shape[0], rest, output)
