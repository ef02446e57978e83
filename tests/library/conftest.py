"""A small model and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from vitcompact.folding.verify import perturbed

SIDE = 32


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=5, num_heads=4, embed_dim=32, depth=2)
    return perturbed(model.eval(), seed=1).eval()


@pytest.fixture(scope="module")
def saved(vit: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of ours."""
    return vitcompact.save(vitcompact.fold(vitcompact.convert(vit)), tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
