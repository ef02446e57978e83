"""Factorised FFN output: which structure a spec means, and its closed-form values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompact.layers.factor import FactorizedLinear
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.models.layer_scale import remove_scale
from vitcompact.plan.schema import Form
from vitcompact.plan.specs import FactorizeSpec


class Factorize:
    """Builds `FactorizedLinear` in the place of `fc2`."""

    def build(
        self, model: nn.Module, site: AttentionSite | FfnSite, spec: FactorizeSpec, form: Form
    ) -> FactorizedLinear:
        """See `Operator.build`; a LayerScale after the FFN is absorbed by the solved values."""
        assert isinstance(site, FfnSite)
        linear = model.get_submodule(site.output)
        weight, _ = matrix(linear)
        factor = FactorizedLinear(
            weight.shape[1],
            weight.shape[0],
            spec.rank,
            branches=spec.branches if form == "training" else 0,
            channel_dim=site.channel_dim,
            device=weight.device,
            dtype=weight.dtype,
        )
        factor.train(linear.training)
        model.set_submodule(site.output, factor)
        remove_scale(model, site.scale)
        return factor


def rank_for(rank_ratio: float, in_features: int, out_features: int) -> int | None:
    """Rank that `rank_ratio` means (a multiple of 8, at least 8), or None where the product would not be smaller."""
    rank = max(8, 8 * round(rank_ratio * out_features / 8))
    return rank if rank * (in_features + out_features) < in_features * out_features else None


@dataclass(frozen=True)
class Factors:
    """`W ~ U V` with its bias, float64: `reduce` V `(rank, in)`, `expand` U `(out, rank)`, `bias (out,)`."""

    reduce: Tensor
    expand: Tensor
    bias: Tensor

    @torch.no_grad()
    def load_into(self, factor: FactorizedLinear) -> None:
        """Copy the values into the solved matrices of a module; its branches stay silent."""
        reduce, expand = factor.solved
        reduce.weight.copy_(self.reduce)
        expand.weight.copy_(self.expand)
        expand.bias.copy_(self.bias)


def plain_svd(weight: Tensor, bias: Tensor, rank: int) -> Factors:
    """Truncation that is best for the weights alone (Eckart-Young): what is done without data, and the naive method."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return Factors(root[:, None] * vh[:rank], u[:, :rank] * root, bias)


def spectrum(covariance: Tensor) -> Tensor:
    """Shares of the output energy by direction, largest first, `(out,)`; their sum is 1."""
    values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    return values / values.sum().clamp_min(1e-300)
