"""Budgets of a model: sensitivities, costs and losses against what they stand for."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from tests.attached import plan_of
from vitcompact.analysis import count
from vitcompact.calibration.sensitivity import sensitivity
from vitcompact.data import from_tensor
from vitcompact.errors import DataError, UsageError
from vitcompact.models import inspect
from vitcompact.models.cost import Cost, meta_copy
from vitcompact.models.site_cost import AttentionCost, FfnCost, site_costs
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import make_spec
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.operators.replay import replay
from vitcompact.operators.thin import ThinQkSpec, ThinVoSpec
from vitcompact.planning.budget_plan import plan_budget
from vitcompact.planning.candidates import measure_losses
from vitcompact.planning.knapsack import spend
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import Budget, Unit
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.plans.specs import OperatorSpec

from .helpers import SIZE, perturbed_model

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit2", {"img_size": 64, "num_classes": 5, "num_heads": 4, "embed_dim": 64, "depth": 3}),
    "pvt": (
        "pvt_v2_b0",
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 4, 4), "num_classes": 5},
    ),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (2, 4), "embed_dim": 32, "img_size": 64}),
    "beit": ("beit_base_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 64, "num_classes": 5}),
}


def model_of(name: str) -> Any:
    base, kwargs = MODELS[name]
    return perturbed_model(base, **kwargs)


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    return model_of("vit")


@pytest.mark.parametrize("name", MODELS)
def test_predicted_costs_are_exact(name: str) -> None:
    """Linear costs from a few counts equal a count of the structure itself, to the last MAC and parameter."""
    model = model_of(name)
    size = (3, 224, 224) if name == "pvt" else SIZE
    anatomy = inspect(model)
    before = count(model, size)
    site = anatomy.attention[-1]
    whole, costs = site_costs(model, anatomy.sites, size)
    assert whole == before
    cost = costs[site.name]
    assert isinstance(cost, AttentionCost)
    half = cost.num_heads // 2
    hallucinated = make_spec(cost.num_heads, {half + i: i for i in range(cost.num_heads - half)})
    cases: list[tuple[tuple[OperatorSpec, ...], float]] = [
        ((ThinQkSpec(cost.qk_dim // 2),), cost.saving("macs", cost.num_heads, cost.qk_dim // 2, cost.v_dim)),
        ((ThinVoSpec(cost.v_dim // 4),), cost.saving("macs", cost.num_heads, cost.qk_dim, cost.v_dim // 4)),
        ((hallucinated, ThinVoSpec(2)), cost.saving("macs", half, cost.qk_dim, 2)),
    ]
    for operators, saving in cases:
        plan = Plan((LayerPlan(site.name, "attention", operators),), form="folded")
        assert before.macs - count(replay(meta_copy(model), plan), size).macs == pytest.approx(saving)
    ffn = anatomy.ffn[-1]
    wide = costs[ffn.name]
    assert isinstance(wide, FfnCost)
    for hidden, rank in ((wide.hidden // 2, 0), (wide.hidden, 8), (wide.hidden // 4, 4)):
        factorized = () if not rank else (FactorizeSpec(rank),)
        plan = Plan((LayerPlan(ffn.name, "ffn", (NeuronsSpec(hidden), *factorized)),), form="folded")
        after = count(replay(meta_copy(model), plan), size)
        assert before.macs - after.macs == pytest.approx(wide.saving("macs", hidden, rank))
        if ffn.scale is None:  # an absorbed LayerScale is saved on top
            assert before.params - after.params == pytest.approx(wide.saving("params", hidden, rank))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("unit", ["macs", pytest.param("params", marks=pytest.mark.broad)])
def test_targets_are_met_and_replayed(name: str, unit: str, images: Tensor) -> None:
    model = model_of(name)
    target: dict[str, Any] = {f"target_{unit}": 0.75}
    compact = vitcompact.convert(model, images=images, batch_size=16, **target)
    folded = vitcompact.fold(compact)
    left = getattr(count(folded, SIZE), unit) / getattr(count(model, SIZE), unit)
    assert 0.65 < left <= 0.75
    again = replay(copy.deepcopy(model), plan_of(folded))
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(images), folded(images))


def test_ops_narrow_the_budget(vit: VisionTransformer, images: Tensor) -> None:
    plan = plan_for(vit, from_tensor(images, 16), Budget("macs", 0.9, ("thin-qk", "thin-vo"))).plan
    assert {spec.op for layer in plan.layers for spec in layer.operators} <= {"thin-qk", "thin-vo"}
    with pytest.raises(UsageError, match=r"out of reach with these operators: about 0\.\d\d is the least"):
        plan_for(vit, from_tensor(images, 16), Budget("macs", 0.2, ("thin-qk",)))


@pytest.mark.parametrize("name", ["vit", "swin", "beit"])
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_what_cannot_be_reached_is_known_before_anything_is_measured(name: str, unit: Unit, images: Tensor) -> None:
    """From sizes alone, and the same as the curve says after measuring."""
    model = model_of(name)
    losses = measure_losses(model, from_tensor(images, 16))
    whole = getattr(count(model, SIZE), unit)
    least = 1 - spend(losses.menus(unit)).reachable / whole
    with (
        patch("vitcompact.planning.candidates.BlockWalker", side_effect=AssertionError("measured")),
        pytest.raises(UsageError, match=re.escape(f"{unit}={least - 1e-3:g}` is out of reach")) as refusal,
    ):
        plan_for(model, from_tensor(images, 16), Budget(unit, least - 1e-3))
    assert f"about {least:.2f} is the least" in str(refusal.value)


def test_sensitivity_is_the_expected_effect_of_noise(vit: VisionTransformer, images: Tensor) -> None:
    """Noise on one branch changes the softened prediction as much as the metric says."""
    site = inspect(vit).ffn[1]
    batches = from_tensor(images, 16)
    found = sensitivity(vit, [site], batches, probes=64)
    scale = 1e-3
    changes = []
    module = vit.get_submodule(site.scale)
    with torch.no_grad():
        logits = vit(images)
        chance = (logits / 2).softmax(-1)
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            handle = module.register_forward_hook(
                lambda _, __, out, g=generator: out + scale * torch.randn(out.shape, generator=g)
            )
            moved = (vit(images) - logits) / scale
            handle.remove()
            mean = (chance * moved).sum(-1, keepdim=True)
            changes.append((chance * (moved - mean).square()).sum(-1).mean())
    expected = found.scale(site.name) * vit.embed_dim
    assert float(torch.stack(changes).mean()) == pytest.approx(expected, rel=0.1)


def test_sensitivity_leaves_no_trace(images: Tensor) -> None:
    model = model_of("beit")
    state = copy.deepcopy(model.state_dict())
    wanted = model(images)
    anatomy = inspect(model)
    found = sensitivity(model, [*anatomy.attention, *anatomy.ffn], from_tensor(images, 16))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(images), wanted)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(found.scale(site.name) > 0 for site in anatomy.ffn)


def test_a_layer_that_does_not_matter_pays_first(images: Tensor) -> None:
    """With all but nothing of one FFN reaching the output, that FFN is cut before the others."""
    model = model_of("vit")
    model.blocks[1].ls2.gamma.data.mul_(1e-3)
    losses = measure_losses(model, from_tensor(images, 16))
    plan = plan_budget(model, losses, Budget("macs", 0.93)).plan
    layer = plan.layer("blocks.1.mlp")
    assert layer is not None
    saved = layer.operators[0]
    others = [other.find(NeuronsSpec) for other in plan.layers if other.name.endswith("mlp") and other is not layer]
    assert isinstance(saved, NeuronsSpec)
    assert all(other is None or other.hidden > saved.hidden for other in others)


def test_a_structure_that_costs_more_than_its_layers_say_meets_its_target(
    vit: VisionTransformer, images: Tensor
) -> None:
    """Where few plans lie near, a target may be missed by less than the plan saves beyond it: the next one is taken."""
    losses = measure_losses(vit, from_tensor(images, 16), ops=("neurons",))
    few = {name: {op: each[::4] for op, each in found.items()} for name, found in losses.candidates.items()}
    losses, whole = replace(losses, candidates=few), losses.whole.params

    def dearer(*args: Any, **kwargs: Any) -> Cost:
        cost = count(*args, **kwargs)
        return replace(cost, params=cost.params + round(0.01 * whole))

    first = plan_budget(vit, losses, Budget("params", 0.9)).after.params / whole
    with patch("vitcompact.planning.budget_plan.count", dearer):
        found = plan_budget(vit, losses, Budget("params", first + 0.009))
    assert found.after.params / whole <= first + 0.009


def test_bad_activations_name_the_layer(vit: VisionTransformer, images: Tensor) -> None:
    broken = copy.deepcopy(vit)
    broken.blocks[1].mlp.fc1.weight.data.fill_(3e38)
    with pytest.raises(DataError, match=r"blocks\.1\.mlp"):
        vitcompact.convert(broken, images=images, target_macs=0.8)


def test_constant_images_are_survived(vit: VisionTransformer) -> None:
    compact = vitcompact.convert(vit, images=torch.zeros(16, *SIZE), target_macs=0.8)
    assert torch.isfinite(compact(torch.randn(4, *SIZE))).all()


def test_protected_layers_stay(vit: VisionTransformer, images: Tensor) -> None:
    compact = vitcompact.convert(vit, images=images, target_macs=0.85, protect=["blocks.0"])
    assert not [layer for layer in plan_of(compact).layers if layer.name.startswith("blocks.0.")]
    assert replace(plan_of(compact), form="folded").layers
