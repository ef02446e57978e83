"""What a site costs as a function of its sizes: exactly linear, so that a few counts give every option's cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vitcompact.analysis.cost import Cost, count_modules, meta_copy
from vitcompact.families import AttentionSite, FfnSite, family_named
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.pointwise import matrix
from vitcompact.operators.hallucinate import build_core, whole_core


@dataclass(frozen=True)
class AttentionCost:
    """Saving per channel of all maps' queries and keys together, and per channel of all heads' values."""

    num_heads: int
    qk_dim: int
    v_dim: int
    per_qk: tuple[float, float]
    per_v: tuple[float, float]

    def saving(self, num_maps: int, qk_dim: int, v_dim: int) -> tuple[float, float]:
        """Parameters and MACs saved by these sizes."""
        qk = self.num_heads * self.qk_dim - num_maps * qk_dim
        v = self.num_heads * (self.v_dim - v_dim)
        params, macs = (a * qk + b * v for a, b in zip(self.per_qk, self.per_v, strict=True))
        return params, macs


@dataclass(frozen=True)
class FfnCost:
    """Cost of an FFN with `hidden` units into `outputs`: of all but the output matrix, and of that matrix."""

    hidden: int
    outputs: int
    rest: Cost
    matrix: Cost

    def saving(self, hidden: int, rank: int | None = None) -> tuple[float, float]:
        """Parameters and MACs saved by these sizes."""
        share = hidden / self.hidden
        entries = hidden * self.outputs if rank is None else rank * (hidden + self.outputs)
        positions = self.matrix.macs / (self.hidden * self.outputs)
        params = (1 - share) * self.rest.params + self.hidden * self.outputs - entries
        macs = (1 - share) * self.rest.macs + self.matrix.macs - positions * entries
        return params, macs


def attention_costs(
    model: nn.Module, sites: list[AttentionSite], input_size: tuple[int, int, int]
) -> dict[str, AttentionCost]:
    """Cost of every attention site by its sizes; three counts of the model's structure on tensors without data."""
    if not sites:
        return {}
    (cores, whole), (_, one_map), (_, thin) = (_counted(model, sites, input_size, kind) for kind in ("", "map", "v"))
    found = {}
    for name, core in cores.items():
        qk, v = (core.num_heads - 1) * core.qk_dim, core.num_heads * (core.v_dim - 1)
        found[name] = AttentionCost(
            core.num_heads,
            core.qk_dim,
            core.v_dim,
            _slope(whole[name], one_map[name], qk),
            _slope(whole[name], thin[name], v),
        )
    return found


def _slope(before: Cost, after: Cost, channels: int) -> tuple[float, float]:
    return (before.params - after.params) / max(channels, 1), (before.macs - after.macs) / max(channels, 1)


def _counted(
    model: nn.Module, sites: list[AttentionSite], input_size: tuple[int, int, int], kind: str
) -> tuple[dict[str, CompactAttention], dict[str, Cost]]:
    """Costs with whole cores, with one map for all heads (`map`), with values of one channel (`v`)."""
    meta = meta_copy(model)
    cores = {}
    for site in sites:
        core = whole_core(meta, site)
        if kind == "map":
            parts = family_named(site.family).parts(meta.get_submodule(site.name))
            core = build_core(parts, HeadLayout((0,), (tuple(range(1, parts.num_heads)),)))
        elif kind == "v" and core.fixed_v_dim is None:
            core.narrow(v_dim=1)
        meta.set_submodule(site.name, core)
        cores[site.name] = core
    return cores, count_modules(meta, cores, input_size)


def ffn_costs(model: nn.Module, sites: list[FfnSite], input_size: tuple[int, int, int]) -> dict[str, FfnCost]:
    """Cost of every FFN site by its sizes; one count of the model's structure."""
    names = [name for site in sites for name in (site.name, site.output)]
    costs = count_modules(model, names, input_size) if sites else {}
    found = {}
    for site in sites:
        weight, _ = matrix(model.get_submodule(site.output))
        whole, output = costs[site.name], costs[site.output]
        rest = Cost(whole.params - output.params, whole.macs - output.macs)
        found[site.name] = FfnCost(weight.shape[1], weight.shape[0], rest, output)
    return found
