"""Models on the meta device: structure and cost of a pair can be told, all else is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitcompact
from vitcompact.errors import UsageError
from vitcompact.operators import OPERATORS

SHAPE = {"img_size": 32, "num_classes": 3, "depth": 2, "embed_dim": 48, "num_heads": 4}


def made(device: str) -> nn.Module:
    with torch.device(device):
        return timm.create_model("vit_tiny_patch16_224", **SHAPE).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return made("meta")


def sizes(plan: vitcompact.Plan) -> list[tuple[str, str, object]]:
    """What a plan does but for which head is made from which."""
    found: list[tuple[str, str, object]] = []
    for layer in plan.layers:
        for spec in layer.operators:
            found.append((layer.name, spec.op, OPERATORS[spec.op].size_of(spec)))
    return found


@pytest.mark.parametrize("shares", [{}, {"ratio": 0.25}, {"rank_ratio": 0.25, "only": "ffn"}, {"branches": 1}])
def test_the_plan_has_the_sizes_of_one_with_weights(model: nn.Module, shares: dict[str, Any]) -> None:
    assert sizes(vitcompact.plan(model, **shares)) == sizes(vitcompact.plan(made("cpu"), **shares))


def test_costs_are_those_with_weights(model: nn.Module, tmp_path: Path) -> None:
    report, other = vitcompact.analyze(model), vitcompact.analyze(made("cpu"))
    assert (report.cost, report.predicted) == (other.cost, other.predicted)
    assert report.predicted.macs < report.cost.macs
    assert repr(report) == repr(other)
    assert str(report) == repr(report)[1:-1]
    assert "NaN" not in report.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert report.plan is not None
    assert sizes(report.plan) == sizes(vitcompact.plan(model))


IMAGES = torch.zeros(4, 3, 32, 32)
REFUSED: dict[str, Callable[[nn.Module, Path], object]] = {
    "convert": lambda model, _: vitcompact.convert(model),
    "convert with images": lambda model, _: vitcompact.convert(model, images=IMAGES),
    "plan with images": lambda model, _: vitcompact.plan(model, images=IMAGES),
    "plan for a target": lambda model, _: vitcompact.plan(model, images=IMAGES, target_macs=0.8),
    "analyze with images": lambda model, _: vitcompact.analyze(model, IMAGES),
    "compact": lambda model, _: vitcompact.compact(model, images=IMAGES),
    "finetune": lambda model, _: vitcompact.finetune(model, model, IMAGES),
    "fold": lambda model, _: vitcompact.fold(model, merge_tokens=1),
    "evaluate": lambda model, _: vitcompact.evaluate(model, IMAGES, torch.zeros(4, dtype=torch.long)),
    "bench": lambda model, _: vitcompact.bench(model, model),
    "export": lambda model, folder: vitcompact.export(model, folder / "model.pt2"),
    "save": lambda model, folder: vitcompact.save(model, folder / "out"),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_what_needs_weights_is_refused(model: nn.Module, verb: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model is on the meta device and has no weights"):
        REFUSED[verb](model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_baseline_without_weights(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="baseline is on the meta device"):
        vitcompact.bench(made("cpu"), model)
    with pytest.raises(UsageError, match="reference is on the meta device"):
        vitcompact.evaluate(made("cpu"), IMAGES, reference=model)
