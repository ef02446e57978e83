"""Block-wise reconstruction: it helps on images it never saw, keeps the best, and stays reproducible."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.folding.verify import perturbed
from vitcompact.surgery.reconstruct import ReconstructOptions, images_a_step


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return lively(timm.create_model("test_vit", img_size=64, num_classes=5, num_heads=4, embed_dim=64, depth=1))


def lively(model: nn.Module) -> nn.Module:
    """Random weights so large that blocks matter."""
    model = perturbed(model.eval(), seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "blocks" in name and parameter.dim() > 1:
                parameter.mul_(4)
    return model


def mixtures(count: int, seed: int) -> Tensor:
    """Images of a few degrees of freedom, so that what is learnt on some holds on others."""
    basis = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.einsum("nb,bchw->nchw", torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), basis)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return mixtures(128, 1)


@torch.no_grad()
def error(model: nn.Module, original: nn.Module) -> float:
    fresh = mixtures(64, 2)
    wanted = original(fresh)
    return float((model(fresh) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("how", [{}, {"target_macs": 0.7}])
def test_closer_on_fresh_images(vit: nn.Module, images: Tensor, how: dict[str, Any]) -> None:
    closed = vitcompact.convert(vit, images=images, **how)
    trained = vitcompact.convert(vit, images=images, reconstruct=ReconstructOptions(60, bf16=False), **how)
    assert error(trained, vit) < 0.99 * error(closed, vit)


def test_a_ruinous_rate_is_never_kept(vit: nn.Module, images: Tensor) -> None:
    """Held-out images decide: with steps that destroy the block, the closed form stays."""
    closed = vitcompact.convert(vit, images=images)
    ruined = vitcompact.convert(vit, images=images, reconstruct=ReconstructOptions(12, lr=30.0, bf16=False))
    for (name, first), second in zip(closed.named_parameters(), ruined.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_same_seed_same_weights_and_everything_trains_on(vit: nn.Module, images: Tensor) -> None:
    first, second = (vitcompact.convert(vit, images=images, reconstruct=8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.grad is None for parameter in first.parameters())


@pytest.mark.parametrize(
    ("shape", "channel_dim", "images"),
    [((64, 37, 384), -1, 32), ((64, 257, 384), -1, 5), ((8, 3136, 32), -1, 2), ((8, 96, 14, 14), 1, 6)],
)
def test_more_tokens_mean_fewer_images_a_step(shape: tuple[int, ...], channel_dim: int, images: int) -> None:
    assert images_a_step(torch.empty(shape, device="meta"), channel_dim) == images


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, task: str, total: float | None) -> None: ...

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.notes.append(note)

    def finish(self) -> None: ...


@pytest.mark.broad
def test_hierarchies_with_glue_between_stages(images: Tensor) -> None:
    """Every block of every stage gets closer to its target on held-out images, or stays what it was."""
    model = lively(timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=5))
    progress = Notes()
    vitcompact.convert(model, images=images, reconstruct=ReconstructOptions(30, bf16=False), progress=progress)
    found = [re.search(r"reconstructed (\S+) to (\S+) at step (\d+)", note) for note in progress.notes]
    errors = [(float(match[1]), float(match[2]), int(match[3])) for match in found if match]
    assert len(errors) == 4
    assert all(after <= before for before, after, _ in errors)
    assert any(step > 0 for _, _, step in errors)
