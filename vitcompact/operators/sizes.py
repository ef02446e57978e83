"""Sizes that a site could have, and the most that they could save: known before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.models.ffn import fixed_hidden
from vitcompact.operators.hallucinate import whole_core
from vitcompact.plan.specs import FactorizeSpec, HallucinateSpec, NeuronsSpec, ThinQkSpec, ThinVoSpec
from vitcompact.planning.site_cost import AttentionCost, FfnCost

MULTIPLE = 8
"""Widths of heads and ranks are multiples of this, which CPU kernels like."""
STEPS = 24
"""Sizes considered for hidden units and ranks."""


def attention_sizes(core: CompactAttention, ops: Iterable[str]) -> tuple[list[int], list[int], list[int]]:
    """Numbers of heads to hallucinate, widths of queries and keys and widths of values that are considered."""
    ops = tuple(ops)
    additive = isinstance(core.inner_norm, nn.Identity)
    quarter, half = max(1, core.num_heads // 4), core.num_heads // 2
    copies = sorted({quarter, half}) if HallucinateSpec.op in ops and additive else []
    qk = _widths(core.qk_dim) if ThinQkSpec.op in ops and core.fixed_qk_dim is None else []
    v = _widths(core.v_dim) if ThinVoSpec.op in ops and core.fixed_v_dim is None else []
    return copies, qk, v


def ffn_sizes(original: nn.Module, site: FfnSite, ops: Iterable[str]) -> tuple[list[int], list[int]]:
    """Numbers of hidden units, and ranks of the output matrix, that are considered."""
    ops = tuple(ops)
    full, width = matrix(original.get_submodule(site.output))[0].shape
    free = fixed_hidden(original.get_submodule(site.name)) is None
    limit = width * full / (width + full)
    hidden = _steps(width) if NeuronsSpec.op in ops and free else []
    return hidden, [rank for rank in _steps(full) if rank < limit] if FactorizeSpec.op in ops else []


def most_saved_by_attention(
    original: nn.Module, site: AttentionSite, cost: AttentionCost, unit: str, ops: Iterable[str]
) -> float:
    """What the smallest sizes of `attention_sizes` save together."""
    copies, qk, v = attention_sizes(whole_core(original, site), ops)
    return cost.saving(
        unit, cost.num_heads - max(copies, default=0), min(qk, default=cost.qk_dim), min(v, default=cost.v_dim)
    )


def most_saved_by_ffn(original: nn.Module, site: FfnSite, cost: FfnCost, unit: str, ops: Iterable[str]) -> float:
    """What the smallest sizes of `ffn_sizes` save, with a factorized output matrix or without."""
    sizes, ranks = ffn_sizes(original, site, ops)
    hidden = min(sizes, default=cost.hidden)
    return max(cost.saving(unit, hidden, rank) for rank in (None, *ranks[:1]))


def _widths(full: int) -> list[int]:
    return list(range(MULTIPLE, full, MULTIPLE))


def _steps(full: int) -> list[int]:
    step = max(MULTIPLE, full // STEPS // MULTIPLE * MULTIPLE)
    return list(range(step, full, step))
