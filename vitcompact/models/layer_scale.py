"""Moving a LayerScale into the linear layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def output_scale(model: nn.Module, scale: str | None) -> Tensor | None:
    """The LayerScale factors `(channels,)` after a site, in float64, or None where there is none (any more)."""
    if scale is None:
        return None
    holder, _, name = scale.rpartition(".")
    found = getattr(model.get_submodule(holder), name)
    gamma = found if isinstance(found, Tensor) else getattr(found, "gamma", None)
    return gamma.detach().double() if isinstance(gamma, Tensor) else None


def along(gamma: Tensor, channel_dim: int) -> Tensor:
    """Factors `(channels,)` as they multiply a tensor with its channels on axis -1, or on axis 1 of a feature map."""
    return gamma if channel_dim == -1 else gamma[:, None, None]


def scaled(gamma: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`gamma * (W x + b)` as one linear map in float64: weight `(out, in)` and bias `(out,)`."""
    weight = weight.detach().double()
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double()
    return (weight, bias) if gamma is None else (gamma[:, None] * weight, gamma * bias)


def remove_scale(model: nn.Module, scale: str | None) -> None:
    """Replace a LayerScale by an identity; its factors must be in the layer before it by now.

    A bare parameter of the block becomes ones: the block's own forward multiplies with it.
    """
    if scale is None:
        return
    holder, _, name = scale.rpartition(".")
    found = getattr(model.get_submodule(holder), name)
    if isinstance(found, nn.Parameter):
        found.data = torch.ones_like(found)
    else:
        model.set_submodule(scale, nn.Identity())
