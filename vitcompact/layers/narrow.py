"""Narrower heads: an attention core with fewer channels per query, key or value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention


@torch.no_grad()
def narrow(core: CompactAttention, qk_dim: int | None = None, v_dim: int | None = None) -> None:
    """Keep the first `qk_dim` channels of every query and key and the first `v_dim` of every value, in place.

    The logits' scale stays what it was.

    Raises:
        UsageError: the layer does not allow it, or is not that wide.
    """
    qk, v = qk_dim or core.qk_dim, v_dim or core.v_dim
    for name, width, old, fixed in (
        ("thin-qk", qk, core.qk_dim, core.fixed_qk_dim),
        ("thin-vo", v, core.v_dim, core.fixed_v_dim),
    ):
        if width != old and (fixed is not None or width > old):
            raise UsageError(f"{name}: {fixed or f'heads are {old} wide, {width} is not narrower'}")
    for group in core.packing:
        rows, start = [], 0
        for part in group:
            heads, old, new = (core.num_heads, core.v_dim, v) if part == "v" else (core.num_maps, core.qk_dim, qk)
            rows.append(start + _leading(heads, old, new))
            start += heads * old
        core.set_submodule(group, _part(core.get_submodule(group), torch.cat(rows), None))
    columns = _leading(core.num_heads, core.v_dim, v)
    core.proj = _part(core.proj, None, columns)
    core.beta = None if core.beta is None else nn.Parameter(core.beta[columns])
    core.gamma = None if core.gamma is None else nn.Parameter(core.gamma[columns])
    if core.filter is not None:
        core.filter.v_dim = v
    core.qk_dim, core.v_dim, core.attn_dim = qk, v, core.num_heads * v


def _leading(heads: int, old: int, new: int) -> Tensor:
    """Indices of the first `new` of every `old` channels."""
    return (torch.arange(heads)[:, None] * old + torch.arange(new)).flatten()


def _part(linear: nn.Module, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """A linear layer with some of the outputs and inputs of another."""
    assert isinstance(linear, nn.Linear)
    weight = linear.weight if rows is None else linear.weight[rows]
    weight = weight if columns is None else weight[:, columns]
    part = nn.Linear(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None, device=weight.device, dtype=weight.dtype
    )
    part.weight.copy_(weight)
    if linear.bias is not None:
        part.bias.copy_(linear.bias if rows is None else linear.bias[rows])
    return part.train(linear.training)
