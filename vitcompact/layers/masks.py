"""Masks and biases of one attention call: what is added to the logits, and the mean over the keys allowed."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.layers.calls import AttentionInputs


def logit_mask(inputs: AttentionInputs, dtype: torch.dtype) -> Tensor | None:
    """Mask and bias of a call as one tensor for the attention kernels, boolean only where there is no bias.

    With a bias, causality is part of it: kernels take either a mask or their own causal path.
    """
    mask, bias = inputs.mask, inputs.bias
    if inputs.query_position_bias is not None:
        bias = inputs.query_position_bias if bias is None else bias + inputs.query_position_bias
    if bias is not None:
        bias = bias.to(dtype)
        bias = bias[None] if bias.dim() == 3 else bias
        if inputs.causal:
            mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is None or bias is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask.to(dtype)


def causal_alone(inputs: AttentionInputs) -> bool:
    """Whether a call is causal without any bias, which kernels have a path of their own for."""
    return inputs.causal and inputs.bias is None and inputs.query_position_bias is None


def allowed_mean(v: Tensor, inputs: AttentionInputs, queries: int | None = None) -> Tensor:
    """Mean of `v (batch, keys, channels)` over the keys each query may see: the map `J`, row-normalised.

    A boolean mask allows where it is True; an additive one weighs keys as it does at equal logits, which is even over
    the keys allowed, and by size over merged tokens. Biases count for nothing. Masks that differ between heads have no
    single `J`.

    Args:
        queries: how many ask, where they are not one for each token of `inputs.x`.

    Returns:
        `(batch, queries, channels)`.

    Raises:
        UsageError: the mask differs between heads.
    """
    mask = inputs.mask
    if inputs.causal:
        count = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=v.dtype)
        return v.cumsum(dim=1) / count[:, None]
    if mask is None:
        return v.mean(dim=1, keepdim=True).expand(-1, queries or inputs.x.shape[1], -1)
    if mask.dim() == 4 and mask.shape[1] > 1:
        raise UsageError("the mean path of a hallucinated map needs one attention mask for all heads")
    mask = mask[:, 0] if mask.dim() == 4 else mask
    if mask.dtype != torch.bool:
        return mask.softmax(dim=-1).to(v.dtype) @ v
    weights = mask.to(v.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    return weights @ v
