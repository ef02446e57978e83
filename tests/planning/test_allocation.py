"""Two shares spread by expected loss: as much is saved as evenly, where it costs least."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vitcompact
from tests.attached import plan_of
from vitcompact.analysis import count
from vitcompact.analysis.analyze import predicted_cost
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import HallucinateSpec
from vitcompact.options.selection import Allocation
from vitcompact.planning.candidates import measure_losses
from vitcompact.plans.schema import Plan

from .helpers import SIZE, perturbed_model

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit2", {"img_size": 64, "num_classes": 5, "num_heads": 4, "embed_dim": 64, "depth": 4}),
    "pvt": (
        "pvt_v2_b0",
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 4, 4), "num_classes": 5},
    ),
}
HALVES: dict[str, Any] = {"ratio": 0.5, "rank_ratio": 0.5}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(96, *SIZE, generator=torch.Generator().manual_seed(4))


def model_of(name: str) -> Any:
    model: Any = perturbed_model(MODELS[name][0], **MODELS[name][1])
    if name == "vit":  # one layer that nothing can be taken from for free, one that hardly counts
        with torch.no_grad():
            model.blocks[1].attn.proj.weight *= 4
            model.blocks[1].mlp.fc2.weight *= 4
            model.blocks[2].attn.proj.weight *= 0.05
            model.blocks[2].mlp.fc2.weight *= 0.05
    return model


def heads(plan: Plan) -> list[int]:
    found = (layer.find(HallucinateSpec) for layer in plan.layers)
    return [len(spec.hallucinated) for spec in found if spec is not None]


def ranks(plan: Plan) -> list[int]:
    found = (layer.find(FactorizeSpec) for layer in plan.layers)
    return [spec.rank for spec in found if spec is not None]


def expected(model: Any, images: Tensor, plan: Plan) -> float:
    """The expected loss increase of the sizes in a plan, whoever is whose parent."""
    losses = measure_losses(model, from_tensor(images, 32), ops=("hallucinate", "factorize"))
    total = 0.0
    for layer in plan.layers:
        for spec in layer.operators:
            rows = losses.candidates[layer.name][spec.op]
            size = {HallucinateSpec: lambda s: len(s.hallucinated), FactorizeSpec: lambda s: s.rank}[type(spec)]
            total += next(row.loss for row in rows if size(row.spec) == size(spec))
    return total


def test_as_much_is_saved_at_less_loss(images: Tensor) -> None:
    model = model_of("vit").eval()
    even = vitcompact.plan(model, images=images, **HALVES)
    spread = vitcompact.plan(model, images=images, allocation="global", **HALVES)
    assert heads(even) == [2] * 4
    assert len(set(ranks(spread))) > 1
    left, target = predicted_cost(model, spread).macs, predicted_cost(model, even).macs
    assert 0.98 * target < left <= 1.001 * target
    before = expected(model, images, even)
    assert expected(model, images, spread) < 0.8 * before
    assert vitcompact.plan(model, images=images, allocation="uniform", **HALVES) == even


def test_layers_of_unequal_cost_save_as_many_macs(images: Tensor) -> None:
    model = model_of("pvt").eval()
    cost = {}
    allocations: tuple[Allocation, ...] = ("uniform", "global")
    for allocation in allocations:
        done = vitcompact.fold(vitcompact.convert(model, images=images, allocation=allocation, **HALVES))
        cost[allocation] = count(done, SIZE).macs / count(model, SIZE).macs
    assert cost["uniform"] - 0.02 < cost["global"] <= cost["uniform"] + 0.001


def test_convert_and_analyze_follow_the_plan(images: Tensor) -> None:
    model = model_of("vit").eval()
    asked: dict[str, Any] = {"allocation": "global", "protect": ["blocks.3"], "merge_tokens": 1}
    plan = vitcompact.plan(model, images=images, **asked)
    done = plan_of(vitcompact.convert(model, images=images, **asked))
    assert [layer.name for layer in done.layers] == [layer.name for layer in plan.layers]
    assert heads(done) == heads(plan)
    assert done.merge_tokens == plan.merge_tokens != ()
    assert not any(layer.name.startswith("blocks.3") for layer in plan.layers)
    report = vitcompact.analyze(model, images, **asked)
    assert [len(layer.hallucinated) for layer in report.layers if layer.hallucinated] == heads(plan)
    only = vitcompact.plan(model, images=images, allocation="global", only="ffn")
    assert not heads(only)
    assert ranks(only)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"allocation": "even"}, "takes 'uniform' or 'global', got 'even'"),
        ({"allocation": "global", "images": None}, "needs images"),
        ({"allocation": "global", "target_macs": 0.8}, "leave it out, or `target_macs`"),
        ({"allocation": "uniform", "target_params": 0.8}, "leave it out, or `target_params`"),
        ({"allocation": "global", "terms": ("conv",)}, "leave out `terms`"),
        ({"allocation": "global", "filter_rank": 1}, "leave out `terms`, `filter_rank`"),
        ({"allocation": "global", "plan": Plan(())}, "leave out `allocation`"),
    ],
)
def test_refused(given: dict[str, Any], part: str, images: Tensor) -> None:
    with pytest.raises(UsageError, match=part):
        vitcompact.convert(model_of("vit"), **{"images": images, **given})
