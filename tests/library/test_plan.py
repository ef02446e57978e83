"""`vitcompact.plan` is what `convert` follows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from tests.attached import plan_of
from vitcompact import Plan, UsageError
from vitcompact.operators.hallucinate import HallucinateSpec

REQUESTS: dict[str, dict[str, Any]] = {
    "pair": {"ratio": 0.5, "rank_ratio": 0.25, "protect": ["blocks.1.mlp"], "branches": 1},
    "pair, paths chosen by the data": {"terms": ["identity", "conv"], "reconstruct": 2},
    "copied heads": {"init": "svd", "hallucinate": "copy", "only": "heads"},
    "macs": {"target_macs": 0.8, "reconstruct": 2, "branches": 1},
    "params": {"target_params": 0.7, "ops": ["neurons", "thin-vo"], "without": ["sensitivity"]},
    "merging": {"target_macs": 0.7, "merge_tokens": "auto"},
    "given merging": {"merge_tokens": 1, "only": "ffn"},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_convert_follows_the_plan(name: str, vit: VisionTransformer, images: Tensor) -> None:
    request = REQUESTS[name]
    before = copy.deepcopy(vit.state_dict())
    plan = vitcompact.plan(vit, images=images, **request)
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    direct = vitcompact.convert(vit, images=images, **request)
    assert plan == plan_of(direct)
    values = {key: request[key] for key in ("init", "hallucinate", "reconstruct", "without") if key in request}
    replayed = vitcompact.convert(vit, images=images, plan=plan, **values)
    assert plan_of(replayed) == plan
    first, second = direct.state_dict(), replayed.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_budget_is_planned_without_converting(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr("vitcompact.surgery.job.convert_calibrated", never)
    assert vitcompact.plan(vit, images=images, target_macs=0.8).layers
    with pytest.raises(AssertionError, match="converted"):
        vitcompact.plan(vit, images=images)


def test_from_weights_alone(vit: VisionTransformer, caplog: pytest.LogCaptureFixture) -> None:
    assert vitcompact.plan(vit) == plan_of(vitcompact.convert(vit))
    assert "weights alone" in caplog.text
    with pytest.raises(UsageError, match="needs images"):
        vitcompact.plan(vit, target_macs=0.8)


def test_it_prints_as_a_table(vit: VisionTransformer) -> None:
    plan = vitcompact.plan(vit, ratio=0.5, rank_ratio=0.5, protect=["blocks.1"], merge_tokens=1)
    lines = str(plan).splitlines()
    assert lines[0] == repr(plan)[1:-1]
    assert "hallucinate x1, factorize x1, 2 pairs of tokens merged, 2 left unchanged" in lines[0]
    spec = plan.layers[0].find(HallucinateSpec)
    assert spec is not None
    head = spec.hallucinated[0]
    assert any(line.startswith("blocks.0.attn") and f"{head.head}←{head.parents[0]}" in line for line in lines)
    assert any(line.split() == ["blocks.0.mlp", "factorize", "rank=16"] for line in lines)
    assert lines[-1] == "  2 x protected by 'blocks.1'"


def test_it_is_kept_in_a_file(vit: VisionTransformer, tmp_path: Path) -> None:
    plan = vitcompact.plan(vit)
    plan.save(tmp_path / "folder" / "plan.json")
    assert Plan.load(tmp_path / "folder" / "plan.json") == plan
    with pytest.raises(UsageError, match=r"plan .*none\.json'?: No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("layers")
    with pytest.raises(UsageError, match="not JSON"):
        Plan.load(tmp_path / "text.json")


def test_the_function_does_not_hide_the_package() -> None:
    from vitcompact.plans import schema

    assert schema.Plan is Plan
    assert callable(vitcompact.plan)
