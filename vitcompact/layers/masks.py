"""Masks and biases of one attention call: what is added to the logits, and the mean over the keys allowed.

While `torch.fx` traces a model, whether there is a mask is not known: what depends on it is done in functions that FX
takes as they are (`torch.fx.wrap`).
"""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.layers.calls import AttentionInputs


def logit_mask(inputs: AttentionInputs, dtype: torch.dtype) -> Tensor | None:
    """Mask and bias of a call as one tensor for the attention kernels, boolean only where there is no bias.

    With a bias, causality is part of it: kernels take either a mask or their own causal path.
    """
    bias = inputs.bias
    if inputs.query_position_bias is not None:
        bias = inputs.query_position_bias if bias is None else bias + inputs.query_position_bias
    return inputs.mask if bias is None else biased_mask(bias, inputs.mask, inputs.causal, dtype)


def biased_mask(bias: Tensor, mask: Tensor | None, causal: bool, dtype: torch.dtype) -> Tensor:
    """A bias `(batch, maps, queries, keys)` or without the batch, with a mask on top of it."""
    bias = bias.to(dtype)
    bias = bias[None] if bias.dim() == 3 else bias
    if causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is None:
        return bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask.to(dtype)


def part_of_mask(mask: Tensor | None, first: int, count: int) -> Tensor | None:
    """What concerns some of the maps in a mask, which may be the same for all of them."""
    per_map = mask is not None and mask.dim() == 4 and mask.shape[1] > 1
    return mask[:, first : first + count] if mask is not None and per_map else mask


def masked_logits(logits: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Logits `(batch, maps, queries, keys)` with a mask, or causal ones."""
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits
    return logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask


def causal_alone(inputs: AttentionInputs) -> bool:
    """Whether a call is causal without any bias, which kernels have a path of their own for."""
    return inputs.bias is None and inputs.query_position_bias is None and inputs.causal


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
    return mean_over_allowed(v, inputs.mask, inputs.causal, queries or inputs.x.shape[1])


def mean_over_allowed(v: Tensor, mask: Tensor | None, causal: bool, queries: int) -> Tensor:
    """`allowed_mean` of a mask."""
    if causal:
        count = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=v.dtype)
        return v.cumsum(dim=1) / count[:, None]
    if mask is None:
        return v.mean(dim=1, keepdim=True).expand(-1, queries, -1)
    if mask.dim() == 4 and mask.shape[1] > 1:
        raise UsageError("the mean path of a hallucinated map needs one attention mask for all heads")
    mask = mask[:, 0] if mask.dim() == 4 else mask
    if mask.dtype != torch.bool:
        return mask.softmax(dim=-1).to(v.dtype) @ v
    weights = mask.to(v.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    return weights @ v


torch.fx.wrap("biased_mask")
torch.fx.wrap("mean_over_allowed")
