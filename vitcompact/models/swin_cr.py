"""Window attention of Swin V2 CR (timm/models/swin_transformer_v2_cr.py)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention
from torch import Tensor

from vitcompact.layers.calls import Grid, WindowedCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import CosineNorm
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import mlp_of_coordinates
from vitcompact.models.projections import around, fused


class SwinCrAttention(AttentionFamily):
    """Cosine attention with a temperature a head, biases from an MLP over the logarithms of coordinates."""

    name = "swin-v2-cr"
    attention = WindowMultiHeadAttention
    known_parts = frozenset(
        {"qkv", "attn_drop", "proj", "proj_drop", "meta_mlp", "logit_scale", "relative_coordinates_log"}
    )

    def parts(self, module: Any) -> AttentionParts:
        coords = module.relative_coordinates_log
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            call=WindowedCall(),
            query_norm=CosineNorm(module.logit_scale.detach()[:, None, None], largest=math.log(1.0 / 0.01)),
            key_norm=CosineNorm(),
            position_bias=mlp_of_coordinates(module.meta_mlp, coords, _index(coords), _tables, bounded=False),
        )


def _index(coords: Tensor) -> Tensor:
    """The coordinates are those of every pair, in order."""
    side = math.isqrt(coords.shape[0])
    return torch.arange(side * side, device=coords.device).view(side, side)


def _tables(coords: Tensor, size: Grid) -> tuple[Tensor, Tensor]:
    area = size[0] * size[1]
    windows = SimpleNamespace(window_size=size, logit_scale=coords)
    windows.relative_coordinates_log = coords.new_empty(area * area, 2)
    WindowMultiHeadAttention._make_pair_wise_relative_positions(windows)
    made: Tensor = windows.relative_coordinates_log
    return made, _index(made)
