"""What counts of features is said for every surgery that images decide: shares and plans as well as budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vitcompact
from tests.planning.helpers import perturbed_model
from vitcompact.calibration import output_sensitivity
from vitcompact.planning import candidates


@pytest.fixture(scope="module")
def extractor() -> nn.Module:
    """Without a head."""
    return perturbed_model("test_vit2", img_size=64, num_classes=0, num_heads=2, embed_dim=32, depth=2)


@torch.no_grad()
@pytest.mark.parametrize("asked", [{"allocation": "uniform"}, {"allocation": "global"}, {"plan": None}])
def test_what_counts_is_measured(asked: dict[str, Any], extractor: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers are weighed and where it is chosen what stays of them; the result is another."""
    images = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    if "plan" in asked:
        asked = {"plan": vitcompact.plan(extractor, images=images, target_macs=0.7, keep="cls")}
    whole = vitcompact.convert(extractor, images=images, **asked).state_dict()
    counted = []
    for module in (candidates, output_sensitivity):
        measure = module.sensitivity

        def noted(*args: Any, measure: Any = measure, **kwargs: Any) -> Any:
            counted.append(kwargs["keep"])
            return measure(*args, **kwargs)

        monkeypatch.setattr(module, "sensitivity", noted)
    kept = vitcompact.convert(extractor, images=images, keep="cls", **asked).state_dict()
    assert counted == ["cls"] * (2 if asked.get("allocation") == "global" else 1)
    assert list(kept) != list(whole) or any(not torch.equal(kept[name], whole[name]) for name in kept)
