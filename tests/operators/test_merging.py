"""Token merging in whole models: what it keeps, what it changes, what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from tests.attached import plan_of
from vitcompact.analysis import count
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.folding.verify import perturbed
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.merge import match_tokens
from vitcompact.layers.merging_blocks import METRIC_RANK
from vitcompact.models import inspect
from vitcompact.operators.merge import install_merging, set_metrics, token_metrics
from vitcompact.operators.replay import replay
from vitcompact.plans.schema import Plan
from vitcompact.training import TrainOptions

SMALL = {"embed_dim": 48, "depth": 3, "img_size": 56, "num_heads": 4}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "layer_scale_register": ("test_vit2", {"img_size": 64}, 64),
    "rms_norm_drop_path": ("test_vit4", {"img_size": 64, "drop_path_rate": 0.3}, 64),
    "qk_norm": ("test_vit", {"img_size": 64, "qk_norm": True, "num_heads": 4}, 64),
    "map_pooling": ("test_vit3", {"img_size": 64}, 64),
    "swiglu_registers": ("vit_giant_patch14_reg4_dinov2", SMALL, 56),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}, 64),
    "average_pooling": ("vit_base_patch16_gap_224", {**SMALL, "img_size": 64}, 64),
}


@pytest.fixture(params=CASES)
def plain(request: pytest.FixtureRequest) -> tuple[VisionTransformer, Tensor]:
    name, kwargs, size = CASES[request.param]
    model = perturbed(timm.create_model(name, num_classes=5, **kwargs).eval(), seed=1).eval()
    return model, torch.randn(3, 3, size, size)


def depth(model: VisionTransformer) -> int:
    return len(model.blocks)


def merged(model: VisionTransformer, schedule: tuple[int, ...]) -> VisionTransformer:
    model = copy.deepcopy(model)
    install_merging(model, schedule)
    return model


def test_none_is_bit_exact(plain: tuple[VisionTransformer, Tensor]) -> None:
    model, images = plain
    same = merged(model, (0,) * depth(model))
    assert list(same.state_dict()) == list(model.state_dict())
    assert torch.equal(same(images), model(images))
    for either in (model, same):
        either.train()
    torch.manual_seed(3)
    wanted = model(images)
    torch.manual_seed(3)
    assert torch.equal(same(images), wanted)


@torch.no_grad()
def test_shapes_stay_and_outputs_move(plain: tuple[VisionTransformer, Tensor], tmp_path: Path) -> None:
    model, images = plain
    folded: VisionTransformer = vitcompact.fold(model, merge_tokens=2, images=images)
    assert plan_of(folded).merge_tokens == (2,) * depth(model)
    assert not torch.allclose(folded(images), model(images), rtol=1e-3, atol=1e-4)
    assert folded.vitcompact_merging.cosine < 1
    final, features = folded.forward_intermediates(images)
    wanted = model.forward_intermediates(images, intermediates_only=True)
    assert [f.shape for f in features] == [w.shape for w in wanted]
    assert torch.equal(folded.forward_features(images), final)
    assert torch.equal(folded(images), folded.forward_head(final))
    out = vitcompact.save(folded, tmp_path / "out")
    assert torch.equal(vitcompact.load(out)(images), folded(images))
    assert torch.equal(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images), folded(images))
    getter = timm.create_model(f"local-dir:{out}", pretrained=True, features_only=True, out_indices=(0, 1)).eval()
    torch.testing.assert_close(getter(images), features[:2])


def duplicated(model: VisionTransformer, images: Tensor, patch: int = 16) -> Tensor:
    """Images whose patches are equal in pairs, for a model whose positions are made equal in the same pairs."""
    embedding, first = model.pos_embed, model.num_prefix_tokens
    first = 0 if model.no_embed_class else first
    with torch.no_grad():
        embedding[:, first + 1 :: 2] = embedding[:, first::2]
    rows = images.unfold(3, patch, patch)[:, :, :, ::2]
    return torch.stack((rows, rows), dim=4).flatten(3)


@pytest.mark.parametrize("converted", [False, True])
@torch.no_grad()
def test_equal_tokens_merge_without_a_trace(converted: bool) -> None:
    model = perturbed(timm.create_model("test_vit2", img_size=64, num_classes=5).eval(), seed=1).eval()
    images = duplicated(model, torch.randn(2, 3, 64, 64))
    if converted:
        model = vitcompact.convert(model, images=torch.randn(24, 3, 64, 64), terms=("identity", "mean"))
        model = vitcompact.fold(perturbed(model, seed=2).eval())
        paths = [m for m in model.modules() if isinstance(m, CompactAttention)]
        assert all(m.beta is not None and m.gamma is not None and m.gamma.any() for m in paths)
    wanted = model(images)
    folded = vitcompact.fold(model, merge_tokens=(8, *[0] * (depth(model) - 1)))
    torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(vitcompact.fold(model, merge_tokens=(8, 4, *[0] * (depth(model) - 2)))(images), wanted)
    other = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(folded(other), model(other), rtol=1e-3, atol=1e-3)


def test_a_watched_block_gives_full_length(plain: tuple[VisionTransformer, Tensor]) -> None:
    model, images = plain
    model = merged(model, (3,) * depth(model))
    wanted, seen = model(images), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(model(images), wanted)
    assert set(seen) == {tuple(model.forward_features(images).shape)}


def test_gradients_and_checkpointing() -> None:
    model = perturbed(timm.create_model("test_vit2", img_size=64, num_classes=5), seed=1)
    model, images = merged(model, (2,) * depth(model)), torch.randn(2, 3, 64, 64)
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing(True)
    for either in (model, saving):
        either(images).square().mean().backward()
    for (name, first), second in zip(model.named_parameters(), saving.parameters(), strict=True):
        assert first.grad is not None, name
        torch.testing.assert_close(first.grad, second.grad, msg=name)
    copy.deepcopy(model)  # nothing with a gradient is left behind


@pytest.mark.broad
def test_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    model = merged(timm.create_model("test_vit2", img_size=64, depth=2).eval(), (2, 2))
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_half_precision() -> None:
    model = merged(perturbed(timm.create_model("test_vit2", img_size=64).eval(), seed=1).eval(), (1,) * 8)
    images, wanted = torch.randn(2, 3, 64, 64), None
    wanted = model(images)
    got = copy.deepcopy(model).bfloat16()(images.bfloat16()).float()
    assert (got - wanted).norm() < 0.3 * wanted.norm()  # other pairs may be chosen
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images)).all()


def test_macs_are_counted_by_hand() -> None:
    dim, hidden, classes, schedule = 48, 192, 5, (3, 4, 0)
    model = timm.create_model("vit_base_patch16_224", **{**SMALL, "img_size": 64}, num_classes=classes)
    folded = vitcompact.fold(model, merge_tokens=schedule)
    tokens, macs = 17, 16 * 3 * 16 * 16 * dim + dim * classes
    for r in schedule:
        macs += 4 * tokens * dim * dim + 2 * tokens * tokens * dim
        patches = tokens - 1
        macs += (patches + 1) // 2 * (patches // 2) * dim if r else 0
        tokens -= r
        macs += 2 * tokens * dim * hidden
    assert count(folded, (3, 64, 64)).macs == macs


def test_more_than_there_is_to_merge() -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    folded = vitcompact.fold(model, merge_tokens=100)
    assert plan_of(folded).merge_tokens == (8,) * depth(model)  # of 16 patches
    assert folded(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_folding_again_keeps_or_drops_it() -> None:
    images = torch.randn(2, 3, 64, 64)
    model = perturbed(timm.create_model("test_vit", img_size=64, num_classes=5).eval(), seed=1).eval()
    folded = vitcompact.fold(model, merge_tokens=2)
    again = vitcompact.fold(folded)
    assert again.vitcompact_plan == folded.vitcompact_plan
    assert torch.equal(again(images), folded(images))
    other = vitcompact.fold(folded, merge_tokens=1)
    assert plan_of(other).merge_tokens == (1,) * depth(model)
    without = vitcompact.fold(folded, merge_tokens=0)
    assert without.vitcompact_plan == Plan((), form="folded")
    assert torch.equal(without(images), model(images))


def test_what_was_saved_before_merges_as_it_did(plain: tuple[VisionTransformer, Tensor], tmp_path: Path) -> None:
    """Plans once said nothing of what tokens are compared by: it was their keys. Folding again leaves it so."""
    model, images = plain
    by_keys = copy.deepcopy(model)
    install_merging(by_keys, (4,) * depth(model), "keys")
    by_keys.vitcompact_plan = Plan((), form="folded", merge_tokens=(4,) * depth(model), merge_by="keys")
    out = vitcompact.save(by_keys, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"]["plan"].pop("merge_by") == "keys"
    (out / "config.json").write_text(json.dumps(config))
    again = vitcompact.load(out)
    assert plan_of(again).merge_by == "keys"
    assert torch.equal(again(images), by_keys(images))
    assert torch.equal(vitcompact.fold(again)(images), by_keys(images))
    now = vitcompact.fold(again, merge_tokens=4)
    assert plan_of(now).merge_by == "tokens"
    assert not torch.equal(now(images), by_keys(images))
    assert torch.equal(vitcompact.load(vitcompact.save(now, tmp_path / "now"))(images), now(images))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_resnet", {}),
        ("swin_tiny_patch4_window7_224", {}),
        ("pvt_v2_b0", {}),
        ("vit_base_patch16_rpn_224", SMALL),
        ("vit_small_patch16_18x2_224", {**SMALL, "img_size": 64}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_relpos_small_patch16_224", {}),
    ],
)
def test_other_architectures_are_refused(name: str, kwargs: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    with pytest.raises(UsageError, match="cannot be merged"):
        vitcompact.fold(model, merge_tokens=4)


def test_what_is_refused() -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    images = torch.randn(16, 3, 64, 64)
    for wrong in (-1, (1, 2), (), (1.5,) * depth(model), True):
        with pytest.raises(UsageError, match="merge_tokens"):
            vitcompact.fold(model, merge_tokens=wrong)  # type: ignore[arg-type]
    filtered = vitcompact.convert(model, images=images, filter_rank=1)
    with pytest.raises(UsageError, match="filter_rank=0"):
        vitcompact.fold(filtered, merge_tokens=1)
    folded = vitcompact.fold(model, merge_tokens=1)
    with pytest.raises(UsageError, match="converted already"):
        vitcompact.convert(folded, images=images)
    with pytest.raises(UsageError, match="attention masks"):
        folded(images, is_causal=True)
    with pytest.raises(UsageError, match="3 blocks"):
        replay(timm.create_model("test_vit"), Plan((), merge_tokens=(1, 1, 1)))


def test_a_model_in_training_form_learns_with_merging_on(tmp_path: Path) -> None:
    images = torch.randn(24, 3, 64, 64)
    original = perturbed(timm.create_model("test_vit2", img_size=64, num_classes=5).eval(), seed=1).eval()
    compact: VisionTransformer = vitcompact.convert(original, images=images)
    install_merging(compact, (1,) * depth(compact))
    compact.vitcompact_plan = replace(plan_of(compact), merge_tokens=(1,) * depth(compact))
    again = vitcompact.load(vitcompact.save(compact, tmp_path / "training"))
    assert torch.equal(again.eval()(images), compact.eval()(images))
    trained = vitcompact.finetune(again, original, images, options=TrainOptions(steps=2)).model
    folded = vitcompact.fold(trained)
    assert plan_of(folded).merge_tokens == (1,) * depth(compact)
    torch.testing.assert_close(folded(images), trained(images), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(folded(images), compact(images), rtol=1e-3, atol=1e-3)


def by_sensitivity(model: VisionTransformer, schedule: tuple[int, ...]) -> VisionTransformer:
    """A copy that compares tokens through random matrices."""
    model = copy.deepcopy(model)
    install_merging(model, schedule, "sensitivity")
    set_metrics(model, [torch.randn(model.embed_dim, min(model.embed_dim, METRIC_RANK)) for _ in schedule])
    model.vitcompact_plan = Plan((), form="folded", merge_tokens=schedule, merge_by="sensitivity")
    return model


def metrics_of(model: VisionTransformer) -> list[str]:
    return [name for name in model.state_dict() if name.endswith("metric")]


@torch.no_grad()
def test_what_tokens_are_compared_through_goes_along(plain: tuple[VisionTransformer, Tensor], tmp_path: Path) -> None:
    """Saved, loaded by us and by timm, folded again; only blocks that merge have it, and it goes with merging."""
    model, images = plain
    schedule = (0, *(3,) * (depth(model) - 1))
    compact = by_sensitivity(model, schedule)
    wanted = compact(images)
    assert not torch.equal(wanted, merged(model, schedule)(images))
    assert metrics_of(compact) == [f"blocks.{i}.metric" for i in range(1, depth(model))]
    out = vitcompact.save(compact, tmp_path / "out")
    again = vitcompact.load(out)
    for found in (again, timm.create_model(f"local-dir:{out}", pretrained=True), vitcompact.fold(again)):
        assert torch.equal(found(images), wanted)
    assert plan_of(again).merge_by == "sensitivity"
    other = vitcompact.fold(again, merge_tokens=schedule)
    assert (plan_of(other).merge_by, metrics_of(other)) == ("tokens", [])
    assert torch.equal(other(images), merged(model, schedule)(images))
    without = vitcompact.fold(again, merge_tokens=0)
    assert torch.equal(vitcompact.load(vitcompact.save(without, tmp_path / "without"))(images), model(images))


@pytest.mark.broad
def test_it_compiles_halves_and_learns() -> None:
    torch._dynamo.reset()
    original = perturbed(timm.create_model("test_vit2", img_size=64, depth=2, num_classes=5).eval(), seed=1).eval()
    model, images = by_sensitivity(original, (2, 2)), torch.randn(24, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    assert torch.isfinite(copy.deepcopy(model).bfloat16()(images.bfloat16())).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images)).all()
    before = copy.deepcopy(model.state_dict())
    trained = vitcompact.finetune(model, original, images, options=TrainOptions(steps=2)).model
    after = trained.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in metrics_of(model))
    assert not torch.equal(after["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"])


def test_metrics_weigh_what_errors_do_to_the_output() -> None:
    """A channel that nothing reads hardly counts; what is left out is what counts least."""
    small = {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4, "num_classes": 5}
    model = perturbed(timm.create_model("vit_base_patch16_224", **small).eval(), seed=1).eval().requires_grad_(False)
    for name in ("blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"):
        scale = model.get_parameter(f"{name}.weight")
        scale[7] = 0.0
        scale[3] *= 30
    known = OutputSensitivity(model, from_tensor(torch.randn(16, 3, 64, 64), 8))
    metrics, sites = token_metrics(known), inspect(model).attention
    found = known.of(sites)
    assert metrics is not None
    assert found is not None
    for metric, site in zip(metrics, sites, strict=True):
        assert metric.shape == (96, METRIC_RANK)
        weight = metric.square().sum(1)
        assert float(weight[7]) < 0.2 * float(weight.median()), "through the norms' means alone"
        assert int(weight.argmax()) == 3
        wanted = found.metric[site.name] * (96 / found.metric[site.name].trace())
        left = torch.linalg.eigvalsh(wanted)[96 - METRIC_RANK - 1]
        missed = float(torch.linalg.matrix_norm(metric.double() @ metric.double().T - wanted, 2))
        assert missed == pytest.approx(float(left), rel=0.01, abs=1e-4)


def test_pairs_that_matter_least_go_first() -> None:
    """Tokens that differ only where nothing is read are merged before those that are nearer by themselves."""
    x = torch.randn(1, 1, 8).repeat(1, 8, 1) + 0.01 * torch.randn(1, 8, 8)
    x[:, 2, 5] += 3.0  # tokens 2 and 3 differ in channel 5 only
    x[:, 3] = x[:, 2]
    x[:, 3, 5] -= 3.0
    metric = torch.eye(8)
    metric[5, 5] = 0.0
    assert match_tokens(x, None, 1, 0, metric).merged.tolist() == [[1]]
    assert match_tokens(x, None, 1, 0, metric[:, :5].bfloat16()).merged.tolist() == [[1]]
    assert match_tokens(x, None, 1, 0).merged.tolist() != [[1]]
