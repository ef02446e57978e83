"""Moving a LayerScale into the linear layer before it."""

from __future__ import annotations

from torch import Tensor, nn


def output_scale(model: nn.Module, scale: str | None) -> Tensor | None:
    """The LayerScale factors `(channels,)` after a site, in float64, or None where there is none (any more)."""
    if scale is None:
        return None
    module = model.get_submodule(scale)
    gamma = getattr(module, "gamma", None)
    return gamma.detach().double() if isinstance(gamma, Tensor) else None


def scaled(gamma: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`gamma * (W x + b)` as one linear map in float64: weight `(out, in)` and bias `(out,)`."""
    weight = weight.detach().double()
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double()
    return (weight, bias) if gamma is None else (gamma[:, None] * weight, gamma * bias)


def remove_scale(model: nn.Module, scale: str | None) -> None:
    """Replace a LayerScale by an identity; its factors must be in the layer before it by now."""
    if scale is not None:
        model.set_submodule(scale, nn.Identity())
