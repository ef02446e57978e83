"""Tiny timm models and hostile files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn

import vitcompact.checkpoint  # noqa: F401  (registers the entrypoint)
from vitcompact.plans.schema import Plan

from .helpers import perturb


def _narrow_first_ffn(model: nn.Module, plan: Plan) -> nn.Module:
    """A structural change that stands for a plan: the first block's fc2 becomes two thinner layers."""
    fc2 = model.get_submodule("blocks.0.mlp.fc2")
    assert isinstance(fc2, nn.Linear)
    pair = nn.Sequential(nn.Linear(fc2.in_features, 8, bias=False), nn.Linear(8, fc2.out_features))
    model.set_submodule("blocks.0.mlp.fc2", pair)
    model.vitcompact_plan = plan  # type: ignore[assignment]  # modules are typed to hold tensors and modules
    return model


@pytest.fixture
def structural_replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Plan], nn.Module]:
    """Replaces the package's replay by one that changes the structure whatever the plan says."""
    monkeypatch.setattr("vitcompact.checkpoint.timm_entry.replay", _narrow_first_ffn)
    return _narrow_first_ffn


@pytest.fixture
def vit() -> VisionTransformer:
    """A small ViT for 64 px and ten classes, with perturbed weights."""
    return perturb(timm.create_model("test_vit", pretrained=False, num_classes=10, img_size=64))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def weights_file(vit: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return path
