"""Efficient multi-head self-attention of Next-ViT (timm/models/nextvit.py).

timm's `reparameterize` of the block edits `q`, `k`, `v` and `norm` of this layer by name: the core keeps the three
projections apart and the norm of the reduced tokens under that name.
"""

from __future__ import annotations

from typing import Any

from timm.models.nextvit import EfficientAttention
from torch import nn

from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.reduction import SequenceReduction
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, separate


class NextVitAttention(AttentionFamily):
    """Split projections; keys and values from means over runs of tokens, batch-normalised."""

    name = "nextvit"
    attention = EfficientAttention
    known_parts = frozenset({"q", "k", "v", "attn_drop", "proj", "proj_drop", "sr", "norm"})

    def refuse(self, module: Any) -> str | None:
        norm = getattr(module, "norm", None)
        if type(norm) not in (type(None), nn.Identity, nn.BatchNorm1d):
            return f"unknown norm {type(norm).__name__} of the reduced tokens in {type(module).__name__}"
        return super().refuse(module)

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **separate(module.q, module.k, module.v),
            reduction=None if module.sr is None else SequenceReduction(module.sr),
            reduced_norm=_of_tokens(module.norm),
        )


def _of_tokens(norm: nn.Module | None) -> nn.Module | None:
    """The batch norm over `(batch, channels, tokens)` as one over `(batch, tokens, channels)`."""
    if not isinstance(norm, nn.BatchNorm1d):
        return norm
    device, dtype = norm.running_var.device, norm.running_var.dtype  # type: ignore[union-attr]
    tokens = TokenBatchNorm(norm.num_features, norm.eps, norm.momentum, device=device, dtype=dtype)
    tokens.load_state_dict(norm.state_dict())
    return tokens.train(norm.training)
