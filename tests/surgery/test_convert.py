"""Conversion as a whole: what it costs, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from tests.attached import fidelity_of, plan_of
from vitcompact.analysis import count
from vitcompact.calibration.held_out import held_out
from vitcompact.errors import DataError, NothingToCompactError, UsageError
from vitcompact.folding.verify import perturbed
from vitcompact.layers.branches import BranchedLinear
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.operators.thin import ThinVoSpec
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.surgery import job


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=64, depth=4)
    return perturbed(model.eval(), seed=1).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def error(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    wanted = original(images)
    return float((model(images) - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_better_than_naive_and_silent(vit: VisionTransformer, images: Tensor) -> None:
    fresh = torch.randn(32, 3, 64, 64)
    compact = vitcompact.convert(vit, images=images, branches=1)
    naive = vitcompact.convert(vit, images=images, init="svd", hallucinate="copy")
    assert error(compact, vit, fresh) < 0.9 * error(naive, vit, fresh)
    assert torch.equal(compact(fresh), compact.train()(fresh))  # no drop rates here: silent branches change nothing
    fidelity = fidelity_of(compact)
    assert fidelity.num_samples == 6
    assert fidelity.agreement is not None
    assert 0 <= fidelity.agreement <= 1


def narrow_head(vit: VisionTransformer) -> VisionTransformer:
    """The same model, whose head reads eight channels."""
    model = copy.deepcopy(vit)
    with torch.no_grad():
        model.head.weight[:, 8:] = 0.0
    return model


@torch.no_grad()
@pytest.mark.parametrize("what", ["pair", "units"])
def test_what_stays_is_what_the_output_sees(what: str, vit: VisionTransformer, images: Tensor) -> None:
    model, fresh = narrow_head(vit), torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    plan = None
    if what == "units":
        plan = Plan(tuple(LayerPlan(f"blocks.{i}.mlp", "ffn", (NeuronsSpec(64),)) for i in range(4)))
    kept, blind = (
        vitcompact.convert(model, images=images, plan=plan, without=names) for names in ((), ("sensitivity",))
    )
    assert error(kept, model, fresh) < 0.95 * error(blind, model, fresh)


@torch.no_grad()
def test_a_head_that_nothing_moves_is_no_reason_to_refuse(vit: VisionTransformer, images: Tensor) -> None:
    model = copy.deepcopy(vit)
    nn.init.zeros_(next(model.head.parameters()))
    blind = vitcompact.convert(model, images=images, without=("sensitivity",))
    converted = vitcompact.convert(model, images=images)
    for (name, one), other in zip(converted.state_dict().items(), blind.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_branches_only_where_asked_for(vit: VisionTransformer, images: Tensor) -> None:
    for asked in (0, 2):
        compact = vitcompact.convert(vit, images=images[:16], only="ffn", branches=asked)
        found = {len(module.branches) for module in compact.modules() if isinstance(module, BranchedLinear)}
        assert found == ({asked} if asked else set())
        specs = [spec for layer in plan_of(compact).layers for spec in layer.operators]
        assert {spec.branches for spec in specs if isinstance(spec, FactorizeSpec)} == {asked}


def test_cost_in_forward_passes(vit: VisionTransformer) -> None:
    """Every block sees every image at most six times, whatever the depth; runs that stop early are counted whole."""
    images = torch.randn(128, 3, 64, 64)
    model = copy.deepcopy(vit)
    seen: Counter[str] = Counter()
    owner = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.update({type(module).__name__: len(args[0])}) if _is_block(module) else None
    )
    try:
        vitcompact.convert(model, images=images, batch_size=16)
    finally:
        owner.remove()
    assert seen["Block"] / (len(images) * len(model.blocks)) <= 6


def _is_block(module: nn.Module) -> bool:
    return type(module).__name__ == "Block"


@torch.no_grad()
def test_spilling_to_disk_changes_nothing(vit: VisionTransformer, images: Tensor) -> None:
    kept = vitcompact.convert(vit, images=images, batch_size=16)
    spilled = vitcompact.convert(vit, images=images, batch_size=16, cache_gb=0)
    assert torch.equal(kept(images), spilled(images))


def test_the_original_is_neither_copied_nor_changed(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original stream runs on the caller's own memory, and leaves it as it was."""
    before, seen = copy.deepcopy(vit.state_dict()), []
    solve = job.convert_calibrated

    def spy(original: nn.Module, *args: Any) -> Any:
        seen.append({p.data_ptr() for p in original.parameters()})
        return solve(original, *args)

    monkeypatch.setattr(job, "convert_calibrated", spy)
    compact = vitcompact.convert(vit, images=images, target_macs=0.8, reconstruct=2)
    assert seen == [{p.data_ptr() for p in vit.parameters()}]
    assert not seen[0] & {p.data_ptr() for p in compact.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert all(p.requires_grad for p in vit.parameters())


def test_a_plan_is_replayed(vit: VisionTransformer, images: Tensor) -> None:
    first = vitcompact.convert(vit, images=images)
    plan = Plan.from_json(plan_of(first).to_json())
    assert plan == first.vitcompact_plan
    again = vitcompact.convert(vit, images=images, plan=plan)
    assert again.vitcompact_plan == plan
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_only_and_protect(vit: VisionTransformer, images: Tensor) -> None:
    heads = plan_of(vitcompact.convert(vit, images=images, only="heads", protect=["blocks.1"]))
    assert [layer.name for layer in heads.layers] == ["blocks.0.attn", "blocks.2.attn", "blocks.3.attn"]
    assert ("blocks.1.attn", "protected by 'blocks.1'") in [(s.name, s.reason) for s in heads.skipped]
    ffn = plan_of(vitcompact.convert(vit, images=images, only="ffn"))
    assert {layer.kind for layer in ffn.layers} == {"ffn"}
    with pytest.raises(UsageError, match="leave every layer"):
        vitcompact.convert(vit, protect=["*"])


def test_weights_only_warns(vit: VisionTransformer, caplog: pytest.LogCaptureFixture) -> None:
    compact = vitcompact.convert(vit)
    assert "weights alone" in caplog.text
    assert compact.vitcompact_fidelity is None
    assert len(compact.vitcompact_plan.layers) == 8


@pytest.mark.parametrize("ratio", [0, 1, -0.5, float("nan"), 1.5])
def test_ratio_outside(vit: VisionTransformer, ratio: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        vitcompact.convert(vit, ratio=ratio)
    with pytest.raises(UsageError, match="between 0 and 1"):
        vitcompact.convert(vit, rank_ratio=ratio)


def test_twice_is_refused(vit: VisionTransformer) -> None:
    with pytest.raises(UsageError, match="converted already"):
        vitcompact.convert(vitcompact.convert(vit))


def test_nan_activations_name_the_layer(vit: VisionTransformer, images: Tensor) -> None:
    broken = copy.deepcopy(vit)
    with torch.no_grad():
        broken.blocks[2].mlp.fc1.weight.fill_(3e38)  # finite, what comes of it is not
    with pytest.raises(DataError, match=r"blocks\.2\.mlp"):
        vitcompact.convert(broken, images=images)


def test_nothing_to_compact() -> None:
    with pytest.raises(NothingToCompactError, match="no attention"):
        vitcompact.convert(timm.create_model("test_resnet"))


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("cait_xxs24_224", {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64}, "mixes heads before"),
        ("xcit_nano_12_p16_224", {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64}, "channel attention"),
    ],
)
@torch.no_grad()
def test_other_attention_is_left_alone(name: str, kwargs: dict[str, Any], reason: str) -> None:
    """Attention classes without a family stay as they are, with the reason, and the FFNs beside them compact."""
    torch.manual_seed(0)
    size = 64
    model = perturbed(timm.create_model(name, num_classes=5, **kwargs).eval(), seed=1).eval()
    images = torch.randn(24, 3, size, size)
    compact = vitcompact.convert(model, images=images)
    plan = plan_of(compact)
    assert {layer.kind for layer in plan.layers} == {"ffn"}
    assert any(reason in item.reason for item in plan.skipped)
    naive = vitcompact.convert(model, images=images, init="svd")
    assert error(compact, model, images) < error(naive, model, images)
    folded = vitcompact.fold(compact)
    assert count(folded, (3, size, size)).macs < count(model, (3, size, size)).macs


def test_small_batches_hold_images_out_too(vit: VisionTransformer, images: Tensor) -> None:
    """With nothing to judge by, the smallest ridge would always win: exact on these images, wild elsewhere."""
    assert [held_out(size) for size in (1, 2, 3, 4, 16, 64)] == [0, 1, 1, 1, 2, 8]
    others = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    few = vitcompact.convert(vit, images=images[:4])
    gradients = []
    for model in (vit, few.eval()):
        model.zero_grad()
        model(others).square().mean().backward()
        gradients.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    vit.zero_grad()
    assert gradients[1] < 3 * gradients[0]
    small = vitcompact.convert(vit, images=images, batch_size=3)
    assert error(small, vit, others) < 1.2 * error(vitcompact.convert(vit, images=images, batch_size=16), vit, others)


def test_too_few_images_are_said_and_survived(vit: VisionTransformer, caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan((LayerPlan("blocks.1.mlp", "ffn", (NeuronsSpec(96),)),))
    compact = vitcompact.convert(vit, images=torch.randn(4, 3, 64, 64), plan=plan)
    assert "few calibration images for 1 layer(s): blocks.1.mlp has" in caplog.text
    fresh = torch.randn(16, 3, 64, 64)
    assert error(compact, vit, fresh) < 0.5
    caplog.clear()
    vitcompact.convert(vit, images=torch.randn(96, 3, 64, 64), plan=plan)
    assert "few calibration" not in caplog.text


def test_how_few_images_there_are_is_counted_right(vit: VisionTransformer, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens of the images that are not held out, over the inputs of the layer that is solved."""
    specs = {"blocks.1.mlp": (NeuronsSpec(96),), "blocks.1.attn": (ThinVoSpec(8),)}
    attention, tokens = vit.blocks[1].attn, vit.patch_embed.num_patches + vit.num_prefix_tokens
    for name, unknowns in (("blocks.1.mlp", 96), ("blocks.1.attn", 8 * attention.num_heads)):
        caplog.clear()
        plan = Plan((LayerPlan(name, "ffn" if "mlp" in name else "attention", specs[name]),))
        vitcompact.convert(vit, images=torch.randn(2, 3, 64, 64), plan=plan)
        assert f"{name} has {tokens / unknowns:.1f} tokens for each unknown" in caplog.text
