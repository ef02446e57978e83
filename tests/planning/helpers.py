"""Small models whose every layer matters, and what is measured of them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitcompact.calibration import output_sensitivity
from vitcompact.folding.verify import perturbed

SIZE = (3, 64, 64)


def perturbed_model(name: str, **kwargs: Any) -> nn.Module:
    """A frozen timm model in evaluation mode whose weights are all moved."""
    torch.manual_seed(0)
    return perturbed(timm.create_model(name, **kwargs).eval(), seed=1).eval().requires_grad_(False)


def watch_sensitivity(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A list that is given the names of the layers whose output sensitivity is measured, pass by pass."""
    asked: list[list[str]] = []
    measure = output_sensitivity.sensitivity

    def watched(model: nn.Module, sites: Any, *rest: Any, **more: Any) -> Any:
        asked.append([site.name for site in sites])
        return measure(model, sites, *rest, **more)

    monkeypatch.setattr(output_sensitivity, "sensitivity", watched)
    return asked
