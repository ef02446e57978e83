"""`size_multiple`: every rank and width of a plan lands on it, whoever chose the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.errors import UsageError
from vitcompact.operators import OPERATORS
from vitcompact.planning import curves
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import Plan

from .helpers import perturbed_model


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """Heads 64 wide and 256 hidden units, so that there is something on every multiple."""
    return perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=2, embed_dim=128, mlp_ratio=2, depth=1)


@pytest.fixture(scope="module")
def few() -> Tensor:
    return torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def sizes_of(plan: Plan) -> dict[str, set[int]]:
    """Ranks and widths by operator; numbers of heads are none."""
    found: dict[str, set[int]] = {}
    for layer in plan.layers:
        for spec in layer.operators:
            if OPERATORS[spec.op].in_channels:
                found.setdefault(spec.op, set()).add(OPERATORS[spec.op].size_of(spec))
    return found


WAYS: dict[str, dict[str, Any]] = {
    "parameters": {"target_params": 0.75},
    "MACs by thin heads": {"target_macs": 0.9, "ops": ("thin-qk", "thin-vo")},
    "MACs by the FFN": {"target_macs": 0.8, "ops": ("factorize", "neurons")},
    "shares by loss": {"allocation": "global", "ratio": 0.5, "rank_ratio": 0.4},
    "the pair": {"ratio": 0.5, "rank_ratio": 0.4},
}


@pytest.mark.parametrize(("way", "multiple"), [*((way, 32) for way in WAYS), ("parameters", 16)])
def test_every_size_lands_on_it(way: str, multiple: int, vit: nn.Module, few: Tensor) -> None:
    plan = vitcompact.plan(vit, images=few, size_multiple=multiple, without=("sensitivity",), **WAYS[way])
    every = [size for sizes in sizes_of(plan).values() for size in sizes]
    assert every
    assert all(size % multiple == 0 for size in every)


def test_curves_of_another_multiple_do_not_count(vit: nn.Module, few: Tensor, tmp_path: Path) -> None:
    kept = curves.Curves(tmp_path / "curves.json")
    shared: dict[str, Any] = {"images": few, "without": ("sensitivity",), "ops": ("neurons",), "curves": kept}
    plans = [vitcompact.plan(vit, size_multiple=multiple, target_params=0.8, **shared) for multiple in (8, 32, 32)]
    assert plans[1] == plans[2] != plans[0]


def test_only_ranks_and_widths_count_channels() -> None:
    named = {name for name, operator in OPERATORS.items() if operator.in_channels}
    assert named == {"thin-qk", "thin-vo", "neurons", "factorize"}


@pytest.mark.parametrize("multiple", [0, -8, 4, 12, 20])
def test_refused(multiple: int) -> None:
    with pytest.raises(UsageError, match=f"`size_multiple` takes a multiple of 8, got {multiple}"):
        Selection(size_multiple=multiple)
