"""Attention over reduced keys: PVT v2 (timm/models/pvt_v2.py) and the global layers of Twins (timm/models/twins.py)."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import Attention
from timm.models.twins import GlobalSubSampleAttn
from torch import nn

from vitcompact.layers.calls import GridCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.reduction import GridReduction
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, query_and_rest


class PvtAttention(AttentionFamily):
    """Queries on the full grid; keys and values after a strided convolution, or after pooling (the linear variant)."""

    name = "pvt"
    attention = Attention
    known_parts = frozenset({"q", "kv", "attn_drop", "proj", "proj_drop", "pool", "sr", "norm", "act"})

    def parts(self, module: Any) -> AttentionParts:
        norm = module.norm
        if getattr(module, "act", None) is not None:
            norm = nn.Sequential(module.norm, module.act)
        return AttentionParts(
            **around(module),
            **query_and_rest(module.q, module.kv),
            call=GridCall(),
            reduction=None if module.sr is None else GridReduction(module.sr, getattr(module, "pool", None)),
            reduced_norm=norm,
        )


class TwinsGlobalAttention(PvtAttention):
    """The same without the linear variant."""

    name = "twins-global"
    attention = GlobalSubSampleAttn
    known_parts = frozenset({"q", "kv", "attn_drop", "proj", "proj_drop", "sr", "norm"})
