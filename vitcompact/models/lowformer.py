"""Convolutional attention of LowFormer (timm/models/lowformer.py) and CPUBone (timm/models/cpubone.py)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import cpubone, lowformer
from torch import nn

from vitcompact.layers.grid_calls import ConvolvedCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, by_head


class LowFormerAttention(AttentionFamily):
    """Tokens from a strided convolution, outputs upsampled again; maybe with the projection inside the upsampling."""

    name = "lowformer"
    attention: Any = lowformer.ConvAttention
    known_parts = frozenset({"conv_proj", "pwise", "o_proj", "upsampling"})
    channel_dim = 1

    def target_of(self, module: Any) -> str | None:
        return "upsampling.0" if _projects_in_upsampling(module) else "o_proj"

    def parts(self, module: Any) -> AttentionParts:
        proj, after = module.o_proj, module.upsampling
        if _projects_in_upsampling(module):
            proj, after = after[0], after[1:]
        elif isinstance(proj, nn.Identity):
            proj = _identity(module.pwise.weight.new_empty(0), int(module.o_proj_inpdim))
        pad = int(module.att_stride) if getattr(module, "small_kernels", False) else 1
        return AttentionParts(
            **around(module, proj),
            **by_head(module.pwise, int(module.num_heads), int(module.head_dim)),
            call=ConvolvedCall(module.conv_proj, after, pad),
        )


class CpuBoneAttention(LowFormerAttention):
    """The same."""

    name = "cpubone"
    attention = cpubone.ConvAttention


def _projects_in_upsampling(module: Any) -> bool:
    up = module.upsampling
    return isinstance(up, nn.Sequential) and isinstance(up[0], nn.Conv2d) and isinstance(module.o_proj, nn.Identity)


def _identity(like: torch.Tensor, size: int) -> nn.Linear:
    """An output projection where the layer has none of its own: solved, it does what is left to do."""
    proj = nn.Linear(size, size, bias=False, device=like.device, dtype=like.dtype)
    proj.weight.data = torch.eye(size, device=like.device, dtype=like.dtype)
    return proj
