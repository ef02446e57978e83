"""Two thin factors of a matrix, and where the energy of a layer's outputs lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompact.calibration.ties import signs
from vitcompact.layers.factor import FactorizedLinear


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
    root = s[:rank].sqrt() * signs(u[:, :rank])
    return Factors(root[:, None] * vh[:rank], u[:, :rank] * root, bias)


def spectrum(covariance: Tensor) -> Tensor:
    """Shares of the output energy by direction, largest first, `(out,)`; their sum is 1."""
    values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    return values / values.sum().clamp_min(1e-300)
