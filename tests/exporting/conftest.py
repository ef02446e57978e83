"""A folded model with every kind of path, and its file in two formats, each written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.folding.verify import perturbed

SIZE = 32


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def converted(images: Tensor) -> nn.Module:
    """In training form, with the identity path and two thin FFN factors."""
    torch.manual_seed(0)
    shape = {"img_size": SIZE, "depth": 2, "embed_dim": 32, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **shape)
    model.pretrained_cfg |= {"label_names": ["bee", "cat", "dog", "emu"], "num_classes": 4}
    return vitcompact.convert(perturbed(model, seed=1).eval(), images=images, ratio=0.5, rank_ratio=0.5)


@pytest.fixture(scope="session")
def folded(converted: nn.Module) -> nn.Module:
    return vitcompact.fold(converted)


@pytest.fixture(scope="session")
def onnx_file(folded: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    return vitcompact.export(folded, tmp_path_factory.mktemp("onnx") / "model.onnx").out


@pytest.fixture(scope="session")
def pt2_file(folded: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vitcompact.export(folded, tmp_path_factory.mktemp("pt2") / "model.pt2").out
