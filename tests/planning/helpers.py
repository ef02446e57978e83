"""Small models whose every layer matters."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from vitcompact.folding.verify import perturbed

SIZE = (3, 64, 64)


def perturbed_model(name: str, **kwargs: Any) -> nn.Module:
    """A frozen timm model in evaluation mode whose weights are all moved."""
    torch.manual_seed(0)
    return perturbed(timm.create_model(name, **kwargs).eval(), seed=1).eval().requires_grad_(False)
