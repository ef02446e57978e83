"""Curves that are measured once: found again for what they hold for, and for nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.planning import curves as module
from vitcompact.planning.candidates import measure_losses
from vitcompact.planning.curves import Curves, from_json, to_json

from .helpers import SIZE, perturbed_model


@pytest.fixture(scope="module")
def vit() -> Any:
    return perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=48, depth=2)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(32, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every walk over the images."""
    done: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(1)
        return measure_losses(*args, **kwargs)

    monkeypatch.setattr(module, "measure_losses", counted)
    return done


def test_other_targets_cost_no_walk_and_give_the_same_plans(
    vit: nn.Module, images: Tensor, walks: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    for target in (0.9, 0.7):
        plan = vitcompact.plan(vit, images=images, target_macs=target, curves=Curves(path))
        assert plan == vitcompact.plan(vit, images=images, target_macs=target)
    by_params = vitcompact.plan(vit, images=images, target_params=0.8, curves=Curves(path))
    assert by_params == vitcompact.plan(vit, images=images, target_params=0.8)
    assert len(walks) == 1 + 3
    report = vitcompact.analyze(vit, images, target_macs=0.7, curves=Curves(path))
    assert report.budget is not None
    assert len(walks) == 1 + 3


def test_what_is_kept_is_what_was_measured(vit: nn.Module, images: Tensor) -> None:
    losses = measure_losses(vit, from_tensor(images, 16))
    assert from_json(vit, json.loads(json.dumps(to_json(losses)))) == losses


CHANGES: dict[str, Callable[[Any, Tensor, dict[str, Any]], object]] = {
    "a weight": lambda model, images, asked: model.blocks[0].mlp.fc1.weight.data[0, 0].add_(0.01),
    "a setting": lambda model, images, asked: setattr(model.blocks[0].norm1, "eps", 1e-3),
    "a buffer": lambda model, images, asked: model.blocks[0].register_buffer("extra", torch.ones(1)),
    "an image": lambda model, images, asked: images[7, 0, 3, 3].add_(0.5),
    "the operators": lambda model, images, asked: asked.update(ops=("factorize", "neurons")),
    "the layers": lambda model, images, asked: asked.update(protect=("blocks.1",)),
    "branches": lambda model, images, asked: asked.update(branches=1),
    "the weighing": lambda model, images, asked: asked.update(without=("sensitivity",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_them_has_them_measured_anew(
    change: str, vit: nn.Module, images: Tensor, walks: list[int], tmp_path: Path
) -> None:
    path, model = tmp_path / "curves.json", copy.deepcopy(vit)
    asked: dict[str, Any] = {"ops": ("factorize",)}
    kept: dict[str, Any] = {"target_macs": 0.97, "curves": Curves(path)}
    for _ in range(2):
        vitcompact.plan(model, images=images, **kept, **asked)
    assert len(walks) == 1
    CHANGES[change](model, images, asked)
    vitcompact.plan(model, images=images, **kept, **asked)
    assert len(walks) == 2


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"layers": []}'])
def test_a_file_of_others_is_kept(content: str, vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"notes\.json holds no curves"):
        vitcompact.plan(vit, images=images, target_macs=0.9, curves=Curves(path))
    assert path.read_text() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(sites={"blocks.7.mlp": {}}),
        lambda data: data.update(sites=3),
        lambda data: next(iter(data["sites"].values())).update(factorize=[[{"op": "factorize", "rank": 8}, "NaN"]]),
        lambda data: next(iter(data["sites"].values())).update(nothing=[[{}, 1.0]]),
        lambda data: data.pop("skipped"),
        lambda data: data["predicted"].update(num_samples="4"),
    ],
)
def test_a_damaged_file_is_said_and_replaced(
    damage: Callable[[dict[str, Any]], object],
    vit: nn.Module,
    images: Tensor,
    walks: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "curves.json"
    asked: dict[str, Any] = {"ops": ("factorize",), "target_macs": 0.9}
    first = vitcompact.plan(vit, images=images, curves=Curves(path), **asked)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    assert vitcompact.plan(vit, images=images, curves=Curves(path), **asked) == first
    assert "measured anew" in caplog.text
    assert len(walks) == 2
